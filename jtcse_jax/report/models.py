"""The part of a report about a model itself: its similarities, layers and nearest neighbours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jtcse_jax.architecture import Pooling
from jtcse_jax.encoding.index import ExactIndex
from jtcse_jax.evaluation.examples import Examples
from jtcse_jax.evaluation.inspection import diagnose
from jtcse_jax.evaluation.scored_model import load_model

QUERIES, NEAREST = 6, 3


class Neighbours(NamedTuple):
    """A sentence and the sentences nearest to it."""

    sentence: str
    nearest: list[tuple[float, str]]  #: cosine and sentence, best first


@dataclass(frozen=True)
class Look:
    """A model's results on scored pairs, or on sentences alone: then there are no cosines."""

    source: str  #: description of the model
    examples: str  #: their name
    cosines: np.ndarray  #: [n] float64
    gold: np.ndarray  #: [n] float64
    neighbours: list[Neighbours]
    diagnostics: dict[str, Any]  #: the result of `inspection.diagnose`


def look_at(folder: Path, examples: Examples, *, pooling: Pooling | None = None) -> Look:
    """Reads the model in a folder and inspects it on the examples.

    Vectors are raw or scaled, as the folder defines. Errors as in `load_model` and `embed_pairs`.
    """
    model = load_model(str(folder), pooling=pooling)
    embedded = examples.embed(model.encode)
    return Look(
        source=model.description["model"],
        examples=examples.name,
        cosines=embedded.cosines,
        gold=embedded.pairs.gold,
        neighbours=nearest_neighbours(embedded.sentences, embedded.vectors),
        diagnostics=diagnose(model.members, embedded),
    )


def nearest_neighbours(sentences: list[str], vectors: np.ndarray) -> list[Neighbours]:
    """The nearest other sentences, by vectors [n, D], of a few evenly spaced distinct sentences."""
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
