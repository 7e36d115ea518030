"""`SentenceEncoder`: turns sentences into vectors, compares vectors and searches sentences."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import jax.numpy as jnp
import numpy as np
from jax import Array

from jtcse_jax.data.unknown import warn_of_unknown
from jtcse_jax.encoding.bank_encoder import BankEncoder
from jtcse_jax.encoding.index import make_index
from jtcse_jax.encoding.mteb_encoder import MtebEncoder, MtebTexts
from jtcse_jax.encoding.progress import progress_bar
from jtcse_jax.errors import UserError
from jtcse_jax.store.ensemble import Member, computed_in, load_members
from jtcse_jax.store.saved_model import SavedModel

if TYPE_CHECKING:
    import torch

BLOCK = 8192  # sentences that are read and encoded together

logger = logging.getLogger(__name__)


class Hit(NamedTuple):
    """A sentence of the index that is similar to a query."""

    #: number of the sentence, from 0, in the order of adding
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index
    sentence: str
    score: float  #: cosine


class SentenceEncoder(MtebEncoder):
    """One bank of towers, or a weighted sum of several, that encodes sentences.

    Attributes:
      width: size of a vector (D).
      truncated: number of sentences cut at the serving length so far, over all calls.
      characters: number of characters of all sentences so far.
      unknown: number of these that a bank's tokenizer does not know.
    """

    def __init__(self, banks: Sequence[BankEncoder], weights: Sequence[float] | None = None):
        """Takes banks of one width; their vectors are summed with `weights` (by default 1)."""
        self.banks = tuple(banks)
        self.weights = tuple(weights or [1.0] * len(self.banks))
        self.width = self.banks[0].width
        self.truncated = self.characters = self.unknown = 0
        self._index = None
        self._sentences: list[str] = []

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        step: int | None = None,
        pooling: str | None = None,
        max_len: int | None = None,
        compute_dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> "SentenceEncoder":
        """Loads a workdir, an exported or Hugging Face folder, a hub name or an ensemble.

        `compute_dtype` is the dtype of matrix products; it may differ from that in training. The
        other arguments, and the errors, are those of `ensemble.load_members`.
        """
        members = load_members(name, step=step, pooling=pooling, max_len=max_len)
        return cls.of(computed_in(compute_dtype, members))

    @classmethod
    def of(cls, model: SavedModel | Sequence[Member]) -> "SentenceEncoder":
        """Makes the encoder of a loaded model or of an ensemble's members, on all local devices.

        Raises UserError if a weight is NaN or infinite.
        """
        members = [Member(1.0, model)] if isinstance(model, SavedModel) else model
        banks = [BankEncoder.of(member.model) for member in members]
        encoder = cls(banks, [member.weight for member in members])
        # Refer to the parameters on the devices, so that the host's copy can be freed.
        encoder.members = tuple(
            Member(member.weight, dataclasses.replace(member.model, params=bank.params))
            for member, bank in zip(members, banks, strict=True)
        )
        return encoder

    @overload
    def encode(
        self,
        sentences: str | Iterable[Any],
        *,
        batch_size: int | None = ...,
        show_progress_bar: bool = ...,
        normalize_embeddings: bool = ...,
        truncate_dim: int | None = ...,
        output: Literal["numpy"] = ...,
        task_metadata: Any = ...,
        hf_split: str | None = ...,
        hf_subset: str | None = ...,
        prompt_type: Any = ...,
    ) -> np.ndarray: ...

    @overload
    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        batch_size: int | None = ...,
        show_progress_bar: bool = ...,
        normalize_embeddings: bool = ...,
        truncate_dim: int | None = ...,
        output: Literal["jax"],
    ) -> Array: ...

    @overload
    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        batch_size: int | None = ...,
        show_progress_bar: bool = ...,
        normalize_embeddings: bool = ...,
        truncate_dim: int | None = ...,
        output: Literal["torch"],
    ) -> "torch.Tensor": ...

    def encode(
        self,
        sentences: str | Iterable[Any],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        output: Literal["numpy", "jax", "torch"] = "numpy",
        task_metadata: Any = None,
        hf_split: str | None = None,
        hf_subset: str | None = None,
        prompt_type: Any = None,
    ) -> "np.ndarray | Array | torch.Tensor":
        """Returns [n, D] float32 vectors in the order of the sentences, or [D] for one string.

        No sentences give [0, D]. The empty sentence "" is allowed; its vector is that of the
        special tokens. Sentences longer than the serving length are cut and counted in `truncated`,
        characters that a tokenizer does not know in `unknown`; each call warns once.

        Args:
          sentences: a string, a list, or any iterable, which is read block by block.
          batch_size: number of sentences read and encoded together, by default 8192. It does not
            change how many rows the model sees at once.
          show_progress_bar: show one on stderr.
          normalize_embeddings: scale vectors to length 1. Otherwise they are raw; compare them by
            their cosine.
          truncate_dim: keep only this many components, the first ones; done before scaling.
          output: "numpy", "jax" (on the default device) or "torch" (on the CPU).
          task_metadata: passed by MTEB. If given, `sentences` is MTEB's loader of batches and
            `batch_size` belongs to the loader.
          hf_split: passed by MTEB and ignored.
          hf_subset: likewise.
          prompt_type: likewise.
        Raises:
          UserError: an element is not a string (the message has its index), `truncate_dim`,
            `batch_size` or `output` is not allowed, or torch is requested but not installed.
        """
        if task_metadata is not None:
            sentences, batch_size = MtebTexts(sentences, task_metadata), None
        single = isinstance(sentences, str)
        sentences = [sentences] if single else sentences
        convert = _converter(output)
        width = check_width(truncate_dim, self.width)
        before = self.truncated, self.unknown, self.characters
        vectors = [np.empty((0, width), np.float32)]
        count = len(sentences) if isinstance(sentences, Sized) else None
        with progress_bar(count, show_progress_bar) as progress:
            for block in _blocks(sentences, batch_size):
                encoded = self.encode_block(
                    block,
                    normalize_embeddings=normalize_embeddings,
                    truncate_dim=truncate_dim,
                    done=partial(progress.advance, progress.task_ids[0]),
                )
                vectors.append(encoded)
        warn_of_losses(self, *before)
        whole = np.concatenate(vectors)
        return convert(whole[0] if single else whole)

    def encode_block(
        self,
        sentences: list[str],
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        done: Callable[[float], None] = lambda count: None,
    ) -> np.ndarray:
        """As `encode`, for one block of strings; what is lost is counted without a warning.

        `done` is called repeatedly with the number of newly finished sentences.
        """
        total = np.zeros((len(sentences), self.width), np.float32)
        cut = np.zeros(len(sentences), bool)
        unknown = np.zeros(len(sentences), np.int64)
        for bank, weight in zip(self.banks, self.weights, strict=True):
            encoded = bank.encode(sentences, lambda count: done(count / len(self.banks)))
            total += np.float32(weight) * encoded.vectors
            cut |= encoded.cut
            unknown = np.maximum(unknown, encoded.unknown)
        self.truncated += int(cut.sum())
        self.characters += sum(map(len, sentences))
        self.unknown += int(unknown.sum())
        total = total[:, : check_width(truncate_dim, self.width)]
        if normalize_embeddings:
            total = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
        return total

    def build_index(
        self,
        sentences: Iterable[str],
        *,
        backend: Literal["exact", "faiss"] = "exact",
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        """Builds the index that `search` uses; it replaces an earlier one.

        Args:
          sentences: the sentences to search in.
          backend: "exact", or "faiss" if it is installed: the same result, faster.
          batch_size: as in `encode`.
          show_progress_bar: as in `encode`.
        Raises:
          UserError: as in `encode`; for a string, which may be meant as a file's name; and for an
            unknown backend or one that is not installed.
        """
        if isinstance(sentences, str):
            raise UserError(
                f"build_index({sentences!r}): give the sentences as a list; those of a file are "
                "open(name).read().splitlines()."
            )
        self._index = make_index(backend, self.width)
        self._sentences = []
        self.add_to_index(sentences, batch_size=batch_size, show_progress_bar=show_progress_bar)

    def add_to_index(
        self,
        sentences: str | Iterable[str],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        """Adds sentences to an index that exists. Arguments and errors as `build_index`."""
        index = self._built_index()
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        vectors = self.encode(sentences, batch_size=batch_size, show_progress_bar=show_progress_bar)
        index.add(vectors)
        self._sentences += sentences

    @overload
    def search(  # pyright: ignore[reportOverlappingOverload]  # a str is an Iterable[str] too
        self, queries: str, top_k: int = ..., threshold: float | None = ...
    ) -> list[Hit]: ...

    @overload
    def search(
        self, queries: Iterable[str], top_k: int = ..., threshold: float | None = ...
    ) -> list[list[Hit]]: ...

    def search(
        self, queries: str | Iterable[str], top_k: int = 5, threshold: float | None = None
    ) -> list[Hit] | list[list[Hit]]:
        """Finds the sentences of the index with the highest cosines, best first.

        Args:
          queries: one string, for a list of hits, or several, for one list of hits each.
          top_k: largest number of hits per query.
          threshold: smallest cosine of a hit; by default no limit.
        Raises:
          UserError: no index was built, `top_k` is below 1, or as in `encode`.
        """
        index = self._built_index()
        if top_k < 1:
            raise UserError(f"top_k = {top_k}: ask for at least one sentence.")
        if isinstance(queries, str):
            return self.search([queries], top_k, threshold)[0]
        return [
            [
                Hit(number, self._sentences[number], score)
                for number, score in zip(numbers.tolist(), cosines.tolist(), strict=True)
            ]
            for numbers, cosines in index.search(self.encode(queries), top_k, threshold)
        ]

    def _built_index(self):
        if self._index is None:
            raise UserError("There is no index to search: call build_index first.")
        return self._index


def check_width(truncate_dim: int | None, width: int) -> int:
    """Number of components to keep. UserError if `truncate_dim` is not from 1 to `width`."""
    if truncate_dim is None:
        return width
    if not 1 <= truncate_dim <= width:
        raise UserError(f"truncate_dim = {truncate_dim}: choose 1 to {width}.")
    return truncate_dim


def warn_of_losses(
    encoder: SentenceEncoder, truncated: int = 0, unknown: int = 0, characters: int = 0
) -> None:
    """Warns of cut sentences and unknown characters since the encoder had the given counts."""
    if cut := encoder.truncated - truncated:
        limits = " and ".join(str(bank.serving_length) for bank in encoder.banks)
        logger.warning("%s sentences cut at %s tokens.", f"{cut:,}", limits)
    characters = encoder.characters - characters
    warn_of_unknown("sentences", encoder.unknown - unknown, characters)


def _blocks(sentences: Iterable[Any], batch_size: int | None) -> Iterator[list[str]]:
    size = BLOCK if batch_size is None else batch_size
    if size < 1:
        raise UserError(f"batch_size = {size}: give at least 1.")
    try:
        numbered = enumerate(sentences)
    except TypeError as error:
        raise UserError(f"encode takes strings, not {sentences!r}.") from error
    while block := list(itertools.islice(numbered, size)):
        for number, sentence in block:
            if not isinstance(sentence, str):
                raise UserError(f"encode takes strings, but sentence {number} is {sentence!r}.")
        yield [sentence for _, sentence in block]


def _converter(output: str) -> Callable[[np.ndarray], "np.ndarray | Array | torch.Tensor"]:
    if output == "numpy":
        return lambda vectors: vectors
    if output == "jax":
        return jnp.asarray
    if output != "torch":
        raise UserError(f"output = {output!r}: choose numpy, jax or torch.")
    try:
        import torch
    except ImportError as error:
        raise UserError("output torch needs the package torch: pip install torch") from error
    return torch.from_numpy
