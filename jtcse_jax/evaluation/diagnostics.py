"""Figures beside the score: how embeddings are spread, and how layers treat [CLS].

Pure numpy functions; everything is computed in float64 and returned raw, not times 100.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.sts import Encode, Pairs, encode_distinct, pair_cosines, spearman

SPECTRUM = 64  # singular values reported
COMPARED = 4096  # most sentences in all-pairs figures: their table takes 134 MB
HIGH = 0.8  # share of the range of gold scores above which a pair is positive (4 of 0 to 5)
EMBEDDING_PROTOCOL = (
    "raw figures of the distinct sentences: uniformity (t = 2), anisotropy (mean cosine of two "
    "sentences), effective rank and singular values of the centred unit vectors, these of as many "
    "sentences as `compared`"
)
PAIRS_PROTOCOL = (
    "; alignment (alpha = 2) of pairs in the top fifth of the range of gold scores; Spearman of "
    "cosine and difference in length (characters), also given gold"
)


class EmbeddedPairs(NamedTuple):
    """The distinct sentences of scored pairs, encoded once, and the rows of each pair.

    There are no pairs if only sentences were given.
    """

    sentences: list[str]  #: n, distinct
    vectors: np.ndarray  #: [n, D] raw
    first: np.ndarray  #: [p] int, row of a pair's first sentence
    second: np.ndarray  #: [p] int, of its second
    cosines: np.ndarray  #: [p] float64
    pairs: Pairs


def diagnose_embeddings(embedded: EmbeddedPairs) -> dict[str, Any]:
    """All figures that any encoder allows, ready for JSON: `summary`, rounded, and the spectrum."""
    some = spaced(embedded.vectors, COMPARED)
    return {
        "protocol": EMBEDDING_PROTOCOL + (PAIRS_PROTOCOL if len(embedded.pairs) else ""),
        "pairs": len(embedded.pairs),
        "sentences": len(embedded.vectors),
        "compared": len(some),
        "width": some.shape[1],
        **{name: round(x, 4) for name, x in summary(embedded, most=COMPARED).items()},
        "spectrum": rounded(singular_values(unit(some))[:SPECTRUM], 6),
    }


def embed_pairs(encode: Encode, pairs: Pairs) -> EmbeddedPairs:
    """Encodes each distinct sentence once, in one call.

    Raises UserError for fewer than two pairs or sentences, for pairs that all have one score, and
    for embeddings that are not finite.
    """
    if len(pairs) < 2:
        raise UserError(f"{len(pairs)} scored pair(s): give two or more, of different scores.")
    if np.ptp(pairs.gold) == 0:
        raise UserError(
            f"every pair has the score {pairs.gold[0]:g}: give pairs of different similarity to "
            "rank."
        )
    vectors, index = encode_distinct(encode, [*pairs.first, *pairs.second])
    if len(index) < 2:
        raise UserError("all pairs are one and the same sentence: give different ones.")
    first, second = (
        np.array([index[sentence] for sentence in side]) for side in (pairs.first, pairs.second)
    )
    cosines = pair_cosines(vectors, index, pairs)
    return EmbeddedPairs(list(index), vectors, first, second, cosines, pairs)


def embed_sentences(encode: Encode, sentences: Sequence[str]) -> EmbeddedPairs:
    """Encodes each distinct sentence once, for the figures that need no pairs.

    Raises UserError for fewer than two sentences, and for embeddings that are not finite.
    """
    vectors, index = encode_distinct(encode, sentences)
    if len(index) < 2:
        raise UserError(f"{len(index)} different sentence(s): give two or more.")
    none = np.empty(0)
    rows = none.astype(np.int64)
    return EmbeddedPairs(list(index), vectors, rows, rows, none, Pairs([], [], none))


def summary(embedded: EmbeddedPairs, *, most: int) -> dict[str, float]:
    """The figures that are cheap enough for every evaluation of a run.

    Uniformity, effective rank and anisotropy use `most` sentences, chosen by `spaced`, because
    their cost grows faster than the number of sentences. The rest uses all. A correlation that is
    undefined, because one side is constant, is 0, as in `spearman`. Without pairs their figures are
    left out.
    """
    vectors, pairs = embedded.vectors, embedded.pairs
    some = unit(spaced(vectors, most))
    figures = {
        "uniformity": uniformity(some),
        "effective_rank": effective_rank(some),
        "anisotropy": anisotropy(some),
        "mean_norm": float(np.linalg.norm(vectors, axis=1).mean()),
    }
    if not len(pairs):
        return figures
    high = high_pairs(pairs.gold)
    difference = length_difference(pairs)
    return figures | {
        "alignment": alignment(vectors[embedded.first[high]], vectors[embedded.second[high]]),
        "length_correlation": spearman(embedded.cosines, difference),
        "length_correlation_given_gold": partial_spearman(embedded.cosines, difference, pairs.gold),
    }


def spaced(vectors: np.ndarray, most: int) -> np.ndarray:
    """All rows of [n, D], or `most` of them at even distances: the same rows for every model."""
    count = min(len(vectors), most)
    return vectors[np.arange(count) * len(vectors) // count]


def high_pairs(gold: np.ndarray) -> np.ndarray:
    """[p] bool, the pairs with a gold score in the top fifth of the range of scores.

    On a scale of 0 to 5 these are the pairs above 4, the positives of SimCSE's analysis (arXiv
    2104.08821).
    """
    return gold > gold.min() + HIGH * np.ptp(gold)


def length_difference(pairs: Pairs) -> np.ndarray:
    """[p] float64, the difference in characters, which exist in every script, unlike words."""
    return np.array(
        [abs(len(a) - len(b)) for a, b in zip(pairs.first, pairs.second, strict=True)], np.float64
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    """The rows of [n, D] scaled to length 1, float64; a zero row stays zero."""
    vectors = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared distance of unit vectors of positive pairs, [n, D] each; in [0, 4].

    Wang & Isola 2020 (arXiv 2005.10242) with alpha = 2. Lower is better. Raises ValueError
    without pairs.
    """
    if len(first) == 0 or first.shape != second.shape:
        raise ValueError(f"one or more pairs are needed: {first.shape}, {second.shape}")
    return float(((unit(first) - unit(second)) ** 2).sum(axis=1).mean())


def uniformity(vectors: np.ndarray) -> float:
    """Log of the mean of exp(-2 d^2) over all pairs of different rows, as unit vectors.

    Wang & Isola 2020 (arXiv 2005.10242) with t = 2, for [n, D]; in [-8, 0], lower is better.
    Raises ValueError for fewer than two rows.
    """
    _check_rows(vectors)
    x = unit(vectors)
    lengths = (x**2).sum(axis=1)
    squared = lengths[:, None] + lengths[None, :] - 2 * x @ x.T
    kernel = np.exp(-2 * squared)
    np.fill_diagonal(kernel, 0)
    return float(np.log(kernel.sum() / (len(x) * (len(x) - 1))))


def anisotropy(vectors: np.ndarray) -> float:
    """Mean cosine of two different rows of [n, D]: 0 if directions are spread evenly.

    Ethayarajh 2019 (arXiv 1909.00512) estimates it from random pairs; here it is the mean over all
    pairs, computed from |sum of unit vectors|^2. Raises ValueError for fewer than two rows.
    """
    _check_rows(vectors)
    x = unit(vectors)
    n = len(x)
    together = np.square(x.sum(axis=0)).sum() - np.square(x).sum()
    return float(together / (n * (n - 1)))


def singular_values(vectors: np.ndarray) -> np.ndarray:
    """Singular values of the centred rows [n, D], divided by their sum, falling, [min(n, D)].

    float64; all zeros if all rows are equal. The rows are centred because `anisotropy` measures the
    mean direction.
    """
    x = np.asarray(vectors, np.float64)
    x = x - x.mean(axis=0)
    # From the eigenvalues of the smaller Gram matrix, several times faster than an SVD. Squares of
    # values below 1e-8 of the largest are lost in rounding, so they count as 0.
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    squares = np.linalg.eigvalsh(gram)[::-1]
    values = np.sqrt(np.where(squares > 1e-15 * squares[0], squares, 0))
    total = values.sum()
    return values / total if total > 0 else values


def effective_rank(vectors: np.ndarray) -> float:
    """exp of the entropy of `singular_values`: how many directions the rows [n, D] use.

    Roy & Vetterli 2007 (EUSIPCO); in [1, min(n - 1, D)], 1 if all rows are equal. Fewer rows allow
    fewer directions: compare models on the same sentences.
    """
    share = singular_values(vectors)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def partial_spearman(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Spearman's correlation of x and y, [n] each, without the part that `given` explains in both.

    (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)), as in Kendall & Stuart; 0 if undefined.
    For cosine and difference in length it is the bias towards sentences of equal length that
    ESimCSE (arXiv 2109.04380) found in SimCSE: pairs of high gold score often have similar lengths
    anyway.
    """
    xy, xz, yz = spearman(x, y), spearman(x, given), spearman(y, given)
    rest = (1 - xz**2) * (1 - yz**2)
    # If `given` determines one side, only rounding errors remain to correlate.
    return float((xy - xz * yz) / np.sqrt(rest)) if rest > 1e-12 else 0.0


def e_cls(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """E_CLS [..., n]: the norm of a sentence's [CLS] state over the mean norm of its other states.

    JTCSE (arXiv 2505.02366). Takes hidden states [..., n, T, D], with [CLS] as the first token, and
    mask [n, T] bool of the real tokens, at least two per sentence ([SEP] counts as another token).
    """
    norms = np.linalg.norm(hidden, axis=-1).astype(np.float64)
    others = mask.copy()
    others[:, 0] = False
    if not others.any(axis=1).all():
        raise ValueError("a sentence of one token has no others to compare [CLS] with")
    return norms[..., 0] / ((norms * others).sum(axis=-1) / others.sum(axis=-1))


def attention_mass(
    attention: np.ndarray, mask: np.ndarray, keys: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Share of a sentence's attention on each set of keys, [..., n, H], averaged over its queries.

    Args:
      attention: [..., n, H, T, T] probabilities, queries before keys.
      mask: [n, T] bool, the real tokens; other queries are ignored.
      keys: by name [n, T] bool, the keys whose probabilities are added up.
    """
    queries = (mask / mask.sum(axis=1, keepdims=True)).astype(attention.dtype)
    received = (queries[:, None, None, :] @ attention)[..., 0, :]
    return {name: (received * chosen[:, None, :]).sum(axis=-1) for name, chosen in keys.items()}


def modulus_ratio(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The smaller of two norms over the larger, [...] from [..., D]; 1 for two zero vectors."""
    norms = np.stack([np.linalg.norm(np.asarray(x, np.float64), axis=-1) for x in (first, second)])
    largest = norms.max(axis=0)
    return np.divide(norms.min(axis=0), largest, out=np.ones_like(largest), where=largest > 0)


def modulus_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """|p - q| / (|p| + |q|), the modulus factor of L_ICTM (not halved), [...] from [..., D]."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    total = np.linalg.norm(first, axis=-1) + np.linalg.norm(second, axis=-1)
    apart = np.linalg.norm(first - second, axis=-1)
    return np.divide(apart, total, out=np.zeros_like(total), where=total > 0)


def rounded(values: np.ndarray | np.floating, digits: int = 4) -> Any:
    """Numbers in a form that JSON accepts: (nested) lists, rounded."""
    return np.round(np.asarray(values, np.float64), digits).tolist()


def _check_rows(vectors: np.ndarray) -> None:
    if np.ndim(vectors) != 2 or len(vectors) < 2:
        raise ValueError(f"two vectors or more are needed, [n, D]: {np.shape(vectors)}")
