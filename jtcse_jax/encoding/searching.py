"""Search of similar sentences, for an encoder."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from jtcse_jax.data.blocks import Blocks, sentences_at
from jtcse_jax.data.sources import Source
from jtcse_jax.encoding import index as indexes
from jtcse_jax.encoding.index import Backend
from jtcse_jax.encoding.pairs import best_pairs
from jtcse_jax.errors import UserError
from jtcse_jax.store import ensemble
from jtcse_jax.store.ensemble import Member

_COMPARED = 8  # sentences whose given vectors are compared with our own
_SAME = 0.999  # their smallest cosine: bfloat16 moved MiniLM's vectors by 0.7 %, so 0.99998


class Hit(NamedTuple):
    """A sentence of the index that is similar to a query."""

    #: number of the sentence, from 0, in the order of adding
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index
    sentence: str
    score: float  #: cosine


class Pair(NamedTuple):
    """Two sentences of the index that are similar."""

    indices: tuple[int, int]  #: numbers of the sentences, from 0, in the order of adding
    sentences: tuple[str, str]
    score: float  #: cosine


class Searcher:
    """An index of sentences, for a class with `encode_document`, `encode_query` and `width`."""

    width: int
    members: tuple[Member, ...] | None
    encode_document: Any
    encode_query: Any
    _index: indexes.Index | None = None
    _sentences: list[str] | Source

    def build_index(
        self,
        sentences: Iterable[str],
        *,
        vectors: np.ndarray | None = None,
        backend: Backend = "exact",
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        """Builds the index that `search` uses; it replaces an earlier one.

        Args:
          sentences: the sentences to search in, encoded as by `encode_document`.
          vectors: their vectors [n, D] by this model, if they were encoded before.
          backend: "exact", or "flat", "hnsw" or "ivfpq" if faiss is installed, see `index`.
          batch_size: as in `encode`.
          show_progress_bar: as in `encode`.
        Raises:
          UserError: as in `encode`, for one string, for vectors that do not belong to the
            sentences or the model, and for an unknown backend or one that is not installed.
        """
        if isinstance(sentences, str):
            raise UserError(
                f"build_index takes the sentences, not the string {sentences!r:.100}: for a file "
                "of sentences give its lines."
            )
        sentences = list(sentences)
        if vectors is None:
            vectors = self._encoded(sentences, batch_size, show_progress_bar)
        else:
            self._check_vectors(vectors, len(sentences), sentences[:_COMPARED])
        made = indexes.make_index(backend, self.width)
        made.add(vectors)
        self._index, self._sentences = made, sentences

    def index_files(self, text: Blocks, vectors: np.ndarray) -> None:
        """Makes `search` compare all vectors [n, D], mapped from a file, of a text's sentences.

        Both stay in their files; a search reads the text once, to the last sentence that it finds.
        Raises UserError as `build_index` and the readers of the text do.
        """
        first = list(islice(text.source.read(), _COMPARED))
        self._check_vectors(vectors, text.num_sentences, first)
        self._index, self._sentences = indexes.ExactIndex.mapped(vectors), text.source

    def _check_vectors(self, vectors: np.ndarray, count: int, first: list[str]) -> None:
        """Raises UserError if the vectors are not those of `count` sentences by this model."""
        if vectors.shape != (count, self.width):
            raise UserError(
                f"vectors of shape {list(vectors.shape)} do not belong to {count} sentences and a "
                f"model of width {self.width}: encode the sentences with it."
            )
        ours, given = self.encode_document(first), np.asarray(vectors[: len(first)], np.float32)
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(given, axis=1)
        cosine = ((ours * given).sum(axis=1) / np.maximum(lengths, 1e-12)).min(initial=1)
        if cosine < _SAME:
            raise UserError(
                "the vectors are of another model, prompt or text: a sentence's own vector has "
                f"cosine {cosine:.4f} to the one given; encode the sentences with this model."
            )

    def add_to_index(
        self,
        sentences: str | Iterable[str],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        """Adds one sentence or several to an index that exists; see `build_index`."""
        index = self._built_index()
        self._sentences = self._all_sentences()
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        index.add(self._encoded(sentences, batch_size, show_progress_bar))
        self._sentences += sentences

    def save_index(self, folder: str | Path) -> None:
        """Writes the index, with its sentences, into a new folder that `load_index` reads.

        Raises UserError without an index, and for a folder that has files or cannot be written.
        """
        indexes.save(folder, self._built_index(), self._all_sentences(), self._model_hash())

    def load_index(self, folder: str | Path) -> None:
        """Reads an index that `save_index` wrote, with its backend; it replaces an earlier one.

        Raises UserError if the folder holds no index, it is damaged, another model, or this one
        with other settings, wrote it, or faiss is missing.
        """
        self._index, self._sentences = indexes.load(folder, self._model_hash())

    @overload
    def search(  # pyright: ignore[reportOverlappingOverload]  # a str is an Iterable[str] too
        self,
        queries: str,
        top_k: int = ...,
        threshold: float | None = ...,
        *,
        prompt: str | None = ...,
        prompt_name: str | None = ...,
    ) -> list[Hit]: ...

    @overload
    def search(
        self,
        queries: Iterable[str],
        top_k: int = ...,
        threshold: float | None = ...,
        *,
        prompt: str | None = ...,
        prompt_name: str | None = ...,
    ) -> list[list[Hit]]: ...

    def search(
        self,
        queries: str | Iterable[str],
        top_k: int = 5,
        threshold: float | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """Finds the sentences of the index with the highest cosines, best first.

        Args:
          queries: one string, for a list of hits, or several, for one list of hits each. They are
            encoded as by `encode_query`.
          top_k: largest number of hits per query.
          threshold: smallest cosine of a hit; by default no limit.
          prompt: as in `encode_query`.
          prompt_name: likewise.
        Raises:
          UserError: no index was built, `top_k` is below 1, or as in `encode`.
        """
        index = self._built_index()
        if top_k < 1:
            raise UserError(f"top_k = {top_k}: ask for at least one sentence.")
        single = isinstance(queries, str)
        vectors = self.encode_query(
            [queries] if single else queries, prompt=prompt, prompt_name=prompt_name
        )
        found = index.search(vectors, top_k, threshold)
        sentences = self._sentences_at({number for row, _ in found for number in row.tolist()})
        hits = [
            [
                Hit(number, sentences[number], score)
                for number, score in zip(numbers.tolist(), cosines.tolist(), strict=True)
            ]
            for numbers, cosines in found
        ]
        return hits[0] if single else hits

    def pairs(self, top: int = 1000, threshold: float | None = None) -> list[Pair]:
        """Finds the most similar pairs of sentences of the index, best first, each once.

        All sentences are compared with all others, exactly; memory is that of the vectors.

        Args:
          top: largest number of pairs.
          threshold: smallest cosine of a pair; by default no limit.
        Raises:
          UserError: no index was built, or with the backend "ivfpq", or `top` is below 1.
        """
        index = self._built_index()
        if top < 1:
            raise UserError(f"top = {top}: ask for at least one pair.")
        sentences = self._all_sentences()
        return [
            Pair((first, second), (sentences[first], sentences[second]), cosine)
            for cosine, first, second in best_pairs(index.vectors, top, threshold).tolist()
        ]

    def _sentences_at(self, numbers: set[int]) -> dict[int, str]:
        if isinstance(self._sentences, Source):
            return sentences_at(self._sentences, numbers)
        return {number: self._sentences[number] for number in numbers}

    def _all_sentences(self) -> list[str]:
        if isinstance(self._sentences, Source):
            return list(self._sentences.read())
        return self._sentences

    def _encoded(
        self, sentences: list[str], batch_size: int | None, show_progress_bar: bool
    ) -> np.ndarray:
        return self.encode_document(
            sentences, batch_size=batch_size, show_progress_bar=show_progress_bar
        )

    def _model_hash(self) -> str:
        if self.members is None:
            raise UserError(
                "The index on disk names its model: make the encoder with SentenceEncoder.load or "
                "SentenceEncoder.of."
            )
        return ensemble.fingerprint(self.members)

    def _built_index(self) -> indexes.Index:
        if self._index is None:
            raise UserError("No index was built or loaded: call build_index first.")
        return self._index
