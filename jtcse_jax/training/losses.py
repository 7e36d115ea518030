"""Losses as pure functions of arrays.

Sentence views are interleaved: rows 2i and 2i + 1 of an array [2B, D] are the two views of
sentence i, so the partner of row r is r XOR 1. All losses compute in float32, for inputs of any
dtype. Every function returns a float32 scalar; it and its gradients are finite for zero vectors.
Norms from 1e-6 to 1e19 are exact. For a large batch the [2B, 2B] logits are never all in memory:
the losses take some anchors at a time and compute their logits again in the backward pass. `mask`
[2B] marks the rows that exist in a partial last batch; None means all. `negatives` [mB, D] are m
hard negatives of each sentence, in the order of the sentences: candidates of all anchors, and the
partner of none (the published loss of supervised SimCSE, equation 5).

Sources: JTCSE, arXiv 2505.02366; SimCSE, arXiv 2104.08821.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

_SMALLEST = 1e-12  # lower limit of a sum of squares
_ROUNDING = 1e-7  # a float32 cosine up to this counts as zero: its 1 / cosine would be noise
_TILE = 2**26  # logits (256 MB) that a loss has in memory at a time
_EXCLUDED = -1e30  # an excluded logit; -inf would turn masked gradients into NaN


def info_nce(
    x: Array,
    y: Array,
    *,
    temperature: float,
    mask: Array | None = None,
    negatives: Array | None = None,
) -> Array:
    """NCE(x, y): cross-entropy of each row's partner among all other rows of the batch.

    With S[r, s] = cos(x_r, y_s) / temperature and the entry s = r excluded, it is the mean over
    rows r of -log softmax(S[r])[r XOR 1]: 2B - 2 negatives per anchor, and the hard ones.

    Args:
      x, y: [2B, D] anchors and candidates.
      temperature: the cosines are divided by it.
      mask: [2B] bool.
      negatives: [mB, D] further candidates; rows m * i to m * i + m - 1 belong to sentence i.
    Raises:
      ValueError: there are fewer than two sentences, so no negatives.
    """
    _check_views(x, y)
    anchors = jnp.arange(len(x))
    y, exists = _candidates(y, mask, negatives, None if mask is None else mask[0::2])
    rows = jnp.arange(len(y))

    def values(x: Array, anchors: Array) -> Array:
        partner = anchors ^ 1
        candidates = anchors[:, None] != rows[None, :]
        if exists is not None:
            candidates &= exists[None, :] | (rows[None, :] == partner[:, None])
        logits = jnp.where(candidates, _products(x, y) / temperature, _EXCLUDED)
        return _cross_entropy(logits, partner)

    return masked_mean(_of_anchors(values, _normalize(x), anchors), mask)


def info_nce_other_view(
    x: Array,
    y: Array,
    *,
    temperature: float,
    mask: Array | None = None,
    negatives: Array | None = None,
) -> Array:
    """SimCSE as published: the even rows of x against the odd rows of y, and the hard negatives.

    The mean over sentences i of -log softmax_j(cos(x_2i, y_2j+1) / temperature)[i]:
    B - 1 negatives per anchor, and the hard ones.

    Args and errors as `info_nce`.
    """
    _check_views(x, y)
    x, sentences = _normalize(x[0::2]), jnp.arange(len(x) // 2)
    present = None if mask is None else mask[0::2]
    y, exists = _candidates(y[1::2], present, negatives, present)
    candidates = jnp.arange(len(y))

    def values(x: Array, anchors: Array) -> Array:
        logits = _products(x, y) / temperature
        if exists is not None:
            partner = anchors[:, None] == candidates[None, :]
            logits = jnp.where(exists[None, :] | partner, logits, _EXCLUDED)
        return _cross_entropy(logits, anchors)

    return masked_mean(_of_anchors(values, x, sentences), present)


def ictm(
    x: Array,
    y: Array,
    p: Array,
    q: Array,
    *,
    modulus_half: bool = True,
    mask: Array | None = None,
) -> Array:
    """T(x, y, p, q): the joint tensor-modulus constraint between two towers.

    The mean over even rows r of -log cos(x_r, y_r+1) times the modulus factor
    ||p_r - q_r+1|| / (||p_r|| + ||q_r+1||), halved if `modulus_half`. If the cosine is not positive
    (beyond rounding), the constant 1e-4 replaces it, without a gradient.

    Args:
      x, y: [2B, D] sentence vectors of the two towers.
      p, q: [2B, D] pooler outputs of the two towers; unlike x and y, LayerNorm has not fixed
        their norms.
      modulus_half: halve the modulus factor (the authors' scripts do, their formula does not).
      mask: [2B] bool.
    """
    _check_views(x, y)
    x, y = _normalize(x[0::2]), _normalize(y[1::2])
    p, q = p[0::2].astype(jnp.float32), q[1::2].astype(jnp.float32)
    cosine = jnp.sum(x * y, axis=-1)
    direction = -jnp.log(jnp.where(cosine > _ROUNDING, cosine, 1e-4))
    modulus = _norm(p - q) / (_norm(p) + _norm(q))
    constraint = direction * modulus * (0.5 if modulus_half else 1.0)
    return masked_mean(constraint, None if mask is None else mask[0::2])


def listwise(
    student: Array,
    teacher: Array,
    *,
    temperature: float,
    teacher_temperature: float,
    mask: Array | None = None,
    negatives: tuple[Array | None, Array | None] = (None, None),
) -> Array:
    """Cross-entropy between the teacher's and the student's ranking of the other sentences.

    With P = softmax over j != i of cos(t_2i, t_2j+1) / teacher_temperature, and Q likewise for the
    student, it is the mean over sentences i of -sum_j P[i, j] log Q[i, j]. The sentence itself is
    excluded, because it would take all of P. If `mask` leaves only one sentence, the loss is 0.
    Hard negatives, also those of sentence i, are further entries j.
    Source: ListNet, as in RankCSE (arXiv 2305.16726).

    Args:
      student: [2B, D] embeddings.
      teacher: [2B, E] embeddings of the same views; no gradient flows into them.
      temperature, teacher_temperature: the cosines are divided by them.
      mask: [2B] bool.
      negatives: the student's [mB, D] and the teacher's [mB, E] hard negatives, or None twice.
    Raises:
      ValueError: fewer than two sentences.
    """
    _check_views(student, student)
    sentences = jnp.arange(len(student) // 2)
    present = None if mask is None else mask[0::2]
    of_student, of_teacher = negatives
    ranked, exists = _candidates(student[1::2], present, of_student, present)
    teacher_ranked, _ = _candidates(teacher[1::2], present, of_teacher, present)
    candidates = jnp.arange(len(ranked))

    def values(teacher: Array, student: Array, anchors: Array) -> Array:
        others = anchors[:, None] != candidates[None, :]
        if exists is not None:
            others &= exists[None, :]

        def logits(x: Array, y: Array, temperature: float) -> Array:
            return jnp.where(others, _products(x, y) / temperature, _EXCLUDED)

        # If no other sentence exists, the softmax would spread over the excluded entries.
        wanted = jax.nn.softmax(logits(teacher, teacher_ranked, teacher_temperature))
        wanted = jnp.where(others, wanted, 0)
        given = jax.nn.log_softmax(logits(student, ranked, temperature))
        # For excluded entries `given` may be -1e30; times a `wanted` of 0 it is 0, and finite.
        return -jnp.sum(jax.lax.stop_gradient(wanted) * given, axis=-1)

    anchors = _normalize(teacher[0::2]), _normalize(student[0::2]), sentences
    return masked_mean(_of_anchors(values, *anchors), present)


def token_cross_entropy(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] of each token, [...] float32.

    Args:
      logits: [..., V], any float dtype; the loss is computed in float32.
      targets: [...] int32.
    """
    flat = logits.reshape(-1, logits.shape[-1]).astype(jnp.float32)
    return _cross_entropy(flat, targets.reshape(-1)).reshape(targets.shape)


def alignment(x: Array, *, mask: Array | None = None) -> Array:
    """Mean squared distance of the two normalised views of a sentence, in [0, 4].

    Wang & Isola 2020 (arXiv 2005.10242) with alpha = 2; x is [2B, D] interleaved.
    """
    x = _normalize(x)
    distance = jnp.sum((x[0::2] - x[1::2]) ** 2, axis=-1)
    return masked_mean(distance, None if mask is None else mask[0::2])


def uniformity(x: Array, *, mask: Array | None = None) -> Array:
    """log of the mean of exp(-2 d^2) over pairs of different normalised rows, in [-8, 0].

    Wang & Isola 2020 (arXiv 2005.10242) with t = 2; x is [N, D], one view per sentence. The result
    is 0 if fewer than two rows exist.
    """
    rows, y = jnp.arange(len(x)), _normalize(x)
    exists = jnp.ones(len(x), bool) if mask is None else mask

    def values(x: Array, anchors: Array, exist: Array) -> Array:
        counted = (anchors[:, None] != rows[None, :]) & exist[:, None] & exists[None, :]
        # d^2 = 2 - 2 cos between unit vectors
        logits = jnp.where(counted, 4 * _products(x, y) - 4, _EXCLUDED)
        return jax.nn.logsumexp(logits, axis=-1)

    count = exists.sum()
    pairs = count * (count - 1.0)
    mean = jax.nn.logsumexp(_of_anchors(values, y, rows, exists))
    return jnp.where(pairs > 0, mean - jnp.log(jnp.maximum(pairs, 1)), 0)


def cosines(x: Array, y: Array) -> Array:
    """[N, M] float32 cosines of the rows of x [N, D] and y [M, D]."""
    return _products(_normalize(x), _normalize(y))


def masked_mean(values: Array, mask: Array | None) -> Array:
    """The mean of values [N] over the entries that mask [N] marks; 0 if none. None means all."""
    if mask is None:
        return values.mean()
    # `where`, because values * mask would turn a masked infinity into NaN.
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)


def _candidates(
    y: Array, exists: Array | None, negatives: Array | None, present: Array | None
) -> tuple[Array, Array | None]:
    """The normalised rows of y, then of the negatives; and which of them exist, None for all.

    `exists` is the mask of y and `present` that of the sentences.
    """
    if negatives is None:
        return _normalize(y), exists
    if exists is not None and present is not None:
        each = len(negatives) // len(present)
        exists = jnp.concatenate([exists, jnp.repeat(present, each)])
    return _normalize(jnp.concatenate([y, negatives])), exists


def _of_anchors(values: Callable[..., Array], *anchors: Array) -> Array:
    """Computes `values` [N] of arrays [N, ...]; each anchor is compared with N others.

    With many anchors it takes a tile of them at a time. A tile is every n-th anchor, so that all
    devices that hold anchors have work in each tile.
    """
    count = len(anchors[0])
    tiles = -(-(count**2) // _TILE)
    if tiles == 1:
        return values(*anchors)
    each = -(-count // tiles)

    def strided(x: Array) -> Array:
        x = jnp.pad(x, [(0, tiles * each - count)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(each, tiles, *x.shape[1:]).swapaxes(0, 1)

    recomputed = jax.checkpoint(values)
    found = jax.lax.map(lambda tile: recomputed(*tile), tuple(map(strided, anchors)))
    return found.swapaxes(0, 1).reshape(-1)[:count]


def _products(x: Array, y: Array) -> Array:
    # A TPU multiplies in bf16 by default: two digits of a cosine that is then divided by 0.05.
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def _normalize(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x / _norm(x)[..., None]


def _norm(x: Array) -> Array:
    # The limit is under the root: with a `where` after it, gradients at zero would be NaN.
    return jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1), _SMALLEST))


def _cross_entropy(logits: Array, targets: Array) -> Array:
    target = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - target


def _check_views(x: Array, y: Array) -> None:
    if x.shape != y.shape or len(x) % 2 or len(x) < 4:
        raise ValueError(
            f"views of shapes {x.shape} and {y.shape}: both must be [2B, D] with B >= 2, because "
            "one sentence alone has no negatives"
        )
