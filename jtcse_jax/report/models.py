"""What a report shows of a model itself: its similarities, its layers and nearest neighbours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jtcse_jax.evaluation.diagnostics import embed_pairs
from jtcse_jax.evaluation.sts import Pairs
from jtcse_jax.index import ExactIndex
from jtcse_jax.inspection import diagnose
from jtcse_jax.suites import load_model

QUERIES, NEAREST = 6, 3


class Neighbours(NamedTuple):
    """A sentence, and those of the others that are nearest to it."""

    sentence: str
    nearest: list[tuple[float, str]]  #: cosine and sentence, best first


@dataclass(frozen=True)
class Look:
    """What a model makes of scored pairs."""

    source: str  #: the model, in words
    dev: str  #: the pairs, in words
    cosines: np.ndarray  #: [n] float64
    gold: np.ndarray  #: [n] float64
    neighbours: list[Neighbours]
    diagnostics: dict[str, Any]  #: as `inspection.diagnose`


def look_at(folder: Path, pairs: Pairs, *, dev: str, pooling: str | None = None) -> Look:
    """Reads the model in a folder and looks at what it makes of `pairs`, which `dev` names.

    Vectors are taken as the folder means them, raw or scaled. Errors as `load_model` and
    `embed_pairs`.
    """
    model = load_model(str(folder), pooling=pooling)
    embedded = embed_pairs(model.encode, pairs)
    rows = np.concatenate([embedded.first, embedded.second])
    sentence_of = dict(zip(rows.tolist(), [*pairs.first, *pairs.second], strict=True))
    sentences = [sentence_of[row] for row in range(len(embedded.vectors))]
    return Look(
        source=model.description["model"],
        dev=dev,
        cosines=embedded.cosines,
        gold=pairs.gold,
        neighbours=nearest_neighbours(sentences, embedded.vectors),
        diagnostics=diagnose(model.members, embedded),
    )


def nearest_neighbours(sentences: list[str], vectors: np.ndarray) -> list[Neighbours]:
    """For a few of different sentences, evenly spaced, the nearest others by vectors [n, D]."""
    count = len(sentences)
    queries = sorted({number * count // QUERIES for number in range(QUERIES)})
    index = ExactIndex(vectors.shape[1])
    index.add(vectors)
    found = index.search(vectors[queries], NEAREST + 1)
    return [
        Neighbours(
            sentences[query],
            [
                (float(cosine), sentences[number])
                for number, cosine in zip(numbers, cosines, strict=True)
                if number != query
            ][:NEAREST],
        )
        for query, (numbers, cosines) in zip(queries, found, strict=True)
    ]
