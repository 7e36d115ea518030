"""Looks into the towers: how each layer treats [CLS], in the plain and the crossed streams."""

import dataclasses
import unicodedata
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jtcse_jax.architecture import Cross
from jtcse_jax.batch import Batch
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.diagnostics import (
    EmbeddedPairs,
    attention_mass,
    diagnose_embeddings,
    e_cls,
    modulus_difference,
    modulus_ratio,
    rounded,
)
from jtcse_jax.models.towers import Bank, LayerStates, Params, TowerOutputs, neighbours
from jtcse_jax.runtime.files import read_json
from jtcse_jax.store.ensemble import Member
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.store.workdir import CONFIG

DROPOUT = 0.1  # of the two compared views: the usual rate, since models do not save theirs
ATTENTION_ENTRIES = 2**16  # per layer and head in one call of the model; bounds the memory
PROTOCOL = (
    "means over sentences, by tower: E_CLS (norm of the [CLS] state over the mean norm of the "
    "other tokens' states) and norm of [CLS] after the embeddings and each layer; share of "
    "attention on [CLS], [SEP] and punctuation by layer and head, mean over a sentence's queries; "
    "norms of sentence vector and pooler output, and their ratio (smaller over larger) between "
    "two dropout views; raw, without dropout except for the views"
)


class Inspected(NamedTuple):
    """The states of a bank for some sentences, one per row, cut and padded to T tokens."""

    tokens: np.ndarray  #: [n, T] int32
    mask: np.ndarray  #: [n, T] bool, True for real tokens
    hidden: np.ndarray  #: [K, L + 1, n, T, D] after the embeddings and after each layer
    attention: np.ndarray  #: [K, L, n, H, T, T] float32, queries before keys


def diagnose(
    members: Sequence[Member],
    embedded: EmbeddedPairs,
    *,
    seed: int = 0,
    sentences: int = 256,
    cross: Cross | None = None,
) -> dict[str, Any]:
    """All diagnostics of a model, ready for JSON: of its embeddings and of each member's towers.

    Args:
      members: the members of a loaded model or an ensemble.
      embedded: the model's vectors of scored pairs, or of sentences.
      seed: seed that chooses the inspected sentences and the dropout views.
      sentences: largest number of inspected sentences.
      cross: how the streams cross; by default `default_cross`.
    Raises:
      UserError: `sentences` is below 1, or `cross` does not fit a model.
    """
    if sentences < 1:
        raise UserError(f"sentences = {sentences}: use at least 1.")
    embeddings = diagnose_embeddings(embedded)
    count = min(sentences, len(embedded.sentences))
    drawn = np.random.default_rng(seed).choice(len(embedded.sentences), count, replace=False)
    chosen = [embedded.sentences[number] for number in np.sort(drawn)]
    return {
        "protocol": embeddings.pop("protocol"),
        "towers_protocol": PROTOCOL,
        "seed": seed,
        "embeddings": embeddings,
        "members": [
            diagnose_towers(member.model, chosen, seed=seed, cross=cross) for member in members
        ],
    }


def diagnose_towers(
    model: SavedModel, sentences: Sequence[str], *, seed: int = 0, cross: Cross | None = None
) -> dict[str, Any]:
    """The layers of one bank: `plain`, and for two or more towers also `crossed`.

    Lists are by tower, then layer (with L + 1 entries, 0 is the embeddings), then head.
    `uniform_attention` is the share that evenly spread attention would have. Arguments and errors
    as in `diagnose`.
    """
    bank = model.bank
    cross = cross or default_cross(model)
    params = jax.device_put(model.params)
    model = dataclasses.replace(model, params=params, bank=dataclasses.replace(bank, cross=cross))
    report = {
        "model": model.source,
        "pooling": bank.pooling,
        "sentences": len(sentences),
        "plain": _layers(model, sentences, crossed=False),
    }
    if bank.num_towers > 1:
        crossed = _layers(model, sentences, crossed=True)
        report["crossed"] = dataclasses.asdict(cross) | crossed
    rows = [(tokens, mask) for tokens, mask, _ in _rows(model, sentences)]
    lengths = np.concatenate([mask.sum(axis=1) for _, mask in rows])
    punctuation = np.concatenate(
        [find_punctuation(model.tokenizer, tokens, mask).sum(axis=1) for tokens, mask in rows]
    )
    shares = {"cls": 1 / lengths, "sep": 1 / lengths, "punctuation": punctuation / lengths}
    report["uniform_attention"] = {name: rounded(x.mean()) for name, x in shares.items()}
    return report | _norms(model, sentences, seed)


def layer_figures(
    model: SavedModel, sentences: Sequence[str], *, cross: Cross | None = None
) -> dict[str, float]:
    """A few numbers of `diagnose_towers` for a log, by tower (`_0`, `_1`, ...).

    They are E_CLS after the last layer (also of the crossed stream), the mean share of attention on
    [CLS], and the ratio of the pooler outputs' norms in two views. Arguments and errors as there.
    """
    found = diagnose_towers(model, sentences, cross=cross)
    figures = {}
    for k in range(model.bank.num_towers):
        for stream in ("plain", "crossed"):
            if stream in found:
                figures[f"e_cls_{stream}_{k}"] = found[stream]["e_cls"][k][-1]
        figures[f"cls_attention_{k}"] = float(np.mean(found["plain"]["attention"]["cls"][k]))
        figures[f"pooler_modulus_ratio_{k}"] = found["pooler_modulus_ratio"][k]
    return figures


def default_cross(model: SavedModel) -> Cross:
    """How the streams crossed in the model's training, if its workdir has that.

    Otherwise values cross in six layers, as published, or in all layers if six does not divide
    their number.
    """
    config = model.folder / CONFIG if model.folder else None
    if config and config.is_file():
        found = read_json(config)
        try:
            trained = Cross(**found["model"]["cross"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{config} is of another version ({error}): restore it.") from error
        if trained.mode != "off" and trained.num_layers:
            return trained
    num_layers = model.bank.architecture.num_layers
    return Cross(num_layers=num_layers if num_layers % 6 else 6)


def inspect(
    model: SavedModel, sentences: Sequence[str], *, crossed: bool = False
) -> Iterator[Inspected]:
    """Yields the states and attention of every layer, for a few sentences at a time, in order.

    The streams are plain, or crossed as `model.bank.cross` says. Sentences are cut to
    `model.serving_length` tokens and padded to the longest, so that only one shape is compiled.
    """
    params = jax.device_put(model.params)
    for tokens, mask, batch in _rows(model, sentences):
        states = _layer_states(model.bank, params, batch, crossed)
        hidden, attention = (np.asarray(x)[:, :, : len(tokens)] for x in states)
        yield Inspected(tokens, mask, hidden.astype(np.float32, copy=False), attention)


def find_punctuation(tokenizer: Any, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[n, T] bool: the real tokens that are only punctuation, as BERT defines it."""
    ids, where = np.unique(tokens, return_inverse=True)
    special = set(tokenizer.all_special_ids)
    found = [
        number not in special and _is_punctuation(tokenizer.decode([number]))
        for number in ids.tolist()
    ]
    return np.array(found)[where].reshape(tokens.shape) & mask


def _layers(model: SavedModel, sentences: Sequence[str], *, crossed: bool) -> dict[str, Any]:
    ratios, norms, masses = [], [], []
    for part in inspect(model, sentences, crossed=crossed):
        ends = np.arange(part.mask.shape[1]) == part.mask.sum(axis=1, keepdims=True) - 1
        keys = {
            "cls": np.arange(part.mask.shape[1]) == np.zeros((len(part.mask), 1)),
            "sep": ends,
            "punctuation": find_punctuation(model.tokenizer, part.tokens, part.mask),
        }
        ratios.append(e_cls(part.hidden, part.mask))
        norms.append(np.linalg.norm(part.hidden[..., 0, :], axis=-1))
        masses.append(attention_mass(part.attention, part.mask, keys))
    return {
        "e_cls": rounded(np.concatenate(ratios, axis=-1).mean(axis=-1)),
        "cls_norm": rounded(np.concatenate(norms, axis=-1).mean(axis=-1)),
        "attention": {
            name: rounded(np.concatenate([mass[name] for mass in masses], axis=2).mean(axis=2))
            for name in masses[0]
        },
    }


def _norms(model: SavedModel, sentences: Sequence[str], seed: int) -> dict[str, Any]:
    noisy = dataclasses.replace(model.bank, dropout=DROPOUT, attention_dropout=DROPOUT)
    key = jax.random.key(seed)
    calm, first, second = [], [], []
    for number, (tokens, _, batch) in enumerate(_rows(model, sentences)):
        keys = jax.random.split(jax.random.fold_in(key, number))
        calm.append(_outputs(model.bank, model.params, batch, None, len(tokens)))
        first.append(_outputs(noisy, model.params, batch, keys[0], len(tokens)))
        second.append(_outputs(noisy, model.params, batch, keys[1], len(tokens)))
    (vectors, pooled), one, two = (
        tuple(np.concatenate(part, axis=1) for part in zip(*view, strict=True))
        for view in (calm, first, second)
    )
    report = {
        "vector_norm": rounded(np.linalg.norm(vectors, axis=-1).mean(axis=1)),
        "pooler_norm": rounded(np.linalg.norm(pooled, axis=-1).mean(axis=1)),
        "view_dropout": DROPOUT,
        "vector_modulus_ratio": rounded(modulus_ratio(one[0], two[0]).mean(axis=1)),
        "pooler_modulus_ratio": rounded(modulus_ratio(one[1], two[1]).mean(axis=1)),
    }
    if len(pooled) > 1:
        # As in L_ICTM: the first view in one tower, the second in its neighbour.
        ways = [way for i, j in neighbours(len(pooled)) for way in ((i, j), (j, i))]
        apart = [modulus_difference(one[1][i], two[1][j]).mean() for i, j in ways]
        report["tower_modulus_difference"] = rounded(np.mean(apart))
    return report


def _rows(
    model: SavedModel, sentences: Sequence[str]
) -> Iterator[tuple[np.ndarray, np.ndarray, Batch]]:
    """Tokens and mask [n, T] of a few sentences, and their batch, padded with empty rows."""
    # A copy, because a tokenizer remembers the truncation of its last call.
    cut = deepcopy(model.tokenizer)(
        list(sentences), truncation=True, max_length=model.serving_length
    )
    ids = cut["input_ids"]
    longest = max(map(len, ids))
    size = max(1, min(len(ids), ATTENTION_ENTRIES // longest**2))
    for start in range(0, len(ids), size):
        some = ids[start : start + size]
        tokens = np.full((size, longest), model.bank.architecture.pad_token_id, np.int32)
        lengths = np.array([len(x) for x in some] + [0] * (size - len(some)))
        mask = np.arange(longest) < lengths[:, None]
        tokens[mask] = np.concatenate(some)
        batch = Batch(
            tokens=tokens,
            positions=np.where(mask, np.arange(longest, dtype=np.int32), 0),
            segments=mask.astype(np.int32),
            cls_positions=np.zeros((size, 1), np.int32),
            order=np.arange(size, dtype=np.int32),
            mask=np.ones(size, bool),
        )
        yield tokens[: len(some)], mask[: len(some)], batch


@partial(jax.jit, static_argnums=(0, 3))
def _layer_states(bank: Bank, params: Params, batch: Batch, crossed: bool) -> LayerStates:
    return bank.layer_states(params, batch, crossed=crossed)


def _outputs(
    bank: Bank, params: Params, batch: Batch, key: Array | None, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sentence vectors and pooler outputs of the first `count` rows, [K, count, D] each."""
    outputs = _apply(bank, params, batch, key)
    return np.asarray(outputs.hidden)[:, :count], np.asarray(outputs.pooled)[:, :count]


@partial(jax.jit, static_argnums=0)
def _apply(bank: Bank, params: Params, batch: Batch, key: Array | None) -> TowerOutputs:
    return bank.apply(params, batch, key=key)


def _is_punctuation(text: str) -> bool:
    text = text.strip()
    text = text.removeprefix("##") or text  # WordPiece's mark of a continued word
    return bool(text) and all(
        unicodedata.category(char).startswith("P") or (char.isascii() and char in "$+<=>^`|~")
        for char in text
    )
