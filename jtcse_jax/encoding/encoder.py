"""`SentenceEncoder`: turns sentences into vectors, compares vectors and searches sentences."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import numpy as np
from jax import Array

from jtcse_jax.architecture import Pooling
from jtcse_jax.data.unknown import warn_of_unknown
from jtcse_jax.encoding.bank_encoder import BankEncoder
from jtcse_jax.encoding.mteb_encoder import MtebEncoder, MtebTexts
from jtcse_jax.encoding.outputs import converter
from jtcse_jax.encoding.precision import Precision, quantized
from jtcse_jax.encoding.pretrained import Pretrained
from jtcse_jax.encoding.progress import progress_bar
from jtcse_jax.encoding.searching import Searcher
from jtcse_jax.encoding.similarity import scaled
from jtcse_jax.encoding.token_embeddings import token_embeddings
from jtcse_jax.errors import UserError
from jtcse_jax.store.ensemble import Member, computed_in, load_members
from jtcse_jax.store.saved_model import SavedModel

if TYPE_CHECKING:
    import torch
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType

BLOCK = 8192  # sentences that are read and encoded together

logger = logging.getLogger(__name__)


class EncodeOptions(TypedDict, total=False):
    """The options of `encode` that do not change the type of its result."""

    prompt: str | None
    prompt_name: str | None
    batch_size: int | None
    show_progress_bar: bool
    normalize_embeddings: bool
    truncate_dim: int | None
    precision: Precision


class SentenceEncoder(Pretrained, MtebEncoder, Searcher):
    """One bank of towers, or a weighted sum of several, that encodes sentences.

    Attributes:
      width: size of a vector.
      truncated: number of sentences cut at the serving length so far, over all calls.
      characters: number of characters of all sentences so far.
      unknown: number of these that a bank's tokenizer does not know.
    """

    def __init__(self, banks: Sequence[BankEncoder], weights: Sequence[float] | None = None):
        """Sums the vectors of banks of one width with `weights` (1). UserError for a path."""
        if isinstance(banks, str | Path):
            raise UserError(f"write SentenceEncoder.load({str(banks)!r}) to load a model.")
        self.banks = tuple(banks)
        self.weights = tuple(weights or [1.0] * len(self.banks))
        self.width = self.kept_width(None)
        self.truncated = self.characters = self.unknown = 0

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        step: int | None = None,
        pooling: Pooling | None = None,
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
        sentences: str | Iterable[str],
        *,
        output: Literal["numpy"] = ...,
        **options: Unpack[EncodeOptions],
    ) -> np.ndarray: ...

    @overload
    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        output: Literal["jax"],
        **options: Unpack[EncodeOptions],
    ) -> Array: ...

    @overload
    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        output: Literal["torch"],
        **options: Unpack[EncodeOptions],
    ) -> "torch.Tensor": ...

    @overload
    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        convert_to_tensor: Literal[True],
        **options: Unpack[EncodeOptions],
    ) -> "torch.Tensor": ...

    @overload
    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        convert_to_numpy: Literal[False],
        **options: Unpack[EncodeOptions],
    ) -> "list[torch.Tensor]": ...

    @overload
    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        output_value: Literal["token_embeddings"],
        **options: Unpack[EncodeOptions],
    ) -> list[np.ndarray]: ...

    @overload
    def encode(
        self,
        sentences: "Iterable[Mapping[str, Sequence[str]]]",
        *,
        task_metadata: "TaskMetadata",
        hf_split: str = ...,
        hf_subset: str = ...,
        prompt_type: "PromptType | None" = ...,
        **options: Unpack[EncodeOptions],
    ) -> np.ndarray: ...

    def encode(
        self,
        sentences: "str | Iterable[str] | Iterable[Mapping[str, Sequence[str]]]",
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        output: Literal["numpy", "jax", "torch"] = "numpy",
        output_value: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding",
        convert_to_tensor: bool = False,
        convert_to_numpy: bool = True,
        task_metadata: "TaskMetadata | None" = None,
        hf_split: str | None = None,
        hf_subset: str | None = None,
        prompt_type: "PromptType | None" = None,
    ) -> "np.ndarray | Array | torch.Tensor | list[torch.Tensor] | list[np.ndarray]":
        """Returns [n, D] float32 vectors in the order of the sentences, or [D] for one string.

        The vectors are those of sentence-transformers: if the model's folder has a `Normalize`
        module, they have length 1, and its default prompt is put before each sentence. A weighted
        sum of models adds their raw vectors. No sentences give [0, D]. The empty sentence "" is
        allowed; its vector is that of the special tokens. Sentences longer than the serving length
        are cut and counted in `truncated`, characters that a tokenizer does not know in `unknown`;
        each call warns once.

        Args:
          sentences: a string, a list, or any iterable, which is read block by block.
          prompt: text put before each sentence; by default the model's default prompt, if any.
          prompt_name: the name of one of the model's prompts; ignored if `prompt` is given.
          batch_size: number of sentences read and encoded together, by default 8192. It does not
            change how many rows the model sees at once.
          show_progress_bar: show one on stderr.
          normalize_embeddings: scale vectors to length 1, also those that the model does not.
          truncate_dim: keep only this many components, the first ones; done before scaling by
            `normalize_embeddings`, after that of the model. By default as the model's folder asks,
            or in a sum, if all members ask for fewer, the most of these.
          precision: "float32", or fewer bits, see `precision.quantized`.
          output: "numpy", "jax" (on the default device) or "torch" (on the CPU).
          output_value: "token_embeddings" gives the last hidden states [tokens, D] of each sentence
            instead, of a model with one tower; options of the result have no effect on them.
          convert_to_tensor: as output = "torch".
          convert_to_numpy: False, without `convert_to_tensor`, gives a list of torch's vectors.
          task_metadata: passed by MTEB. If given, `sentences` is MTEB's loader of batches and
            `batch_size` belongs to the loader.
          hf_split: passed by MTEB and ignored.
          hf_subset: likewise.
          prompt_type: likewise.
        Raises:
          UserError: an element is not a string (the message has its index), `truncate_dim`,
            `batch_size` or `output` is not allowed, the model has no such prompt, or torch is
            requested but not installed.
        """
        prompts = self.prompts(prompt, prompt_name)
        if task_metadata is not None:
            if prompt is prompt_name is None:
                prompts = self.mteb_prompts(task_metadata, prompt_type)
            sentences, batch_size = MtebTexts(sentences, task_metadata), None
        single = isinstance(sentences, str)
        sentences = [sentences] if single else sentences
        if output_value == "token_embeddings":
            blocks = _blocks(sentences, batch_size)
            each = (token_embeddings(self.banks, block, prompts) for block in blocks)
            states = list(itertools.chain.from_iterable(each))
            return states[0] if single else states
        as_list = not convert_to_numpy and not convert_to_tensor
        convert = converter("torch" if convert_to_tensor or as_list else output)
        width = self.kept_width(truncate_dim)
        before = self.truncated, self.unknown, self.characters
        vectors = [np.empty((0, width), np.float32)]
        count = len(sentences) if isinstance(sentences, Sized) else None
        with progress_bar(count, show_progress_bar) as progress:
            for block in _blocks(sentences, batch_size):
                done = partial(progress.advance, progress.task_ids[0])
                options = {"normalize_embeddings": normalize_embeddings, "done": done}
                vectors.append(
                    self.encode_block(block, prompts=prompts, truncate_dim=truncate_dim, **options)
                )
        warn_of_losses(self, before)
        whole = quantized(np.concatenate(vectors), precision)
        converted = convert(whole[0] if single else whole)
        return list(converted) if as_list and not single else converted

    def encode_query(
        self, sentences: str | Iterable[str], **options: Unpack[EncodeOptions]
    ) -> np.ndarray:
        """As `encode`, with the model's prompt "query" unless the options choose another one."""
        if options.get("prompt") is options.get("prompt_name") is None:
            options["prompt_name"] = "query"
        return self.encode(sentences, **options)

    def encode_document(
        self, sentences: str | Iterable[str], **options: Unpack[EncodeOptions]
    ) -> np.ndarray:
        """As `encode`, with the model's prompt "document" unless the options choose another one."""
        if options.get("prompt") is options.get("prompt_name") is None:
            options["prompt_name"] = "document"
        return self.encode(sentences, **options)

    def prompts(self, prompt: str | None = None, prompt_name: str | None = None) -> list[str]:
        """The text that each bank puts before a sentence, see `Serving.prompt`."""
        return [bank.serving.prompt(prompt, prompt_name) for bank in self.banks]

    def encode_block(
        self,
        sentences: list[str],
        *,
        prompts: Sequence[str] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        done: Callable[[float], None] = lambda count: None,
    ) -> np.ndarray:
        """As `encode`, for one block of strings; what is lost is counted without a warning.

        `prompts` has a text for each bank, see the method `prompts`. `done` is called repeatedly
        with the number of newly finished sentences.
        """
        total = np.zeros((len(sentences), self.banks[0].width), np.float32)
        cut = np.zeros(len(sentences), bool)
        unknown = np.zeros(len(sentences), np.int64)
        prompts = prompts or self.prompts()
        for bank, weight, prompt in zip(self.banks, self.weights, prompts, strict=True):
            encoded = bank.encode(sentences, lambda count: done(count / len(self.banks)), prompt)
            total += np.float32(weight) * encoded.vectors
            cut |= encoded.cut
            unknown = np.maximum(unknown, encoded.unknown)
        self.truncated += int(cut.sum())
        self.characters += sum(map(len, sentences))
        self.unknown += int(unknown.sum())
        if self.normalizes:
            total = scaled(total)
        total = total[:, : self.kept_width(truncate_dim)]
        return scaled(total) if normalize_embeddings else total

    @property
    def normalizes(self) -> bool:
        """Whether vectors have length 1 without being asked to, as the model's folder defines."""
        return self.banks[0].serving.normalize and len(self.banks) == 1

    def kept_width(self, truncate_dim: int | None = None) -> int:
        """Size of a vector with this `truncate_dim`; UserError if it is not from 1 to D."""
        width = self.banks[0].width
        if truncate_dim is None:
            return min(width, max(bank.serving.truncate_dim or width for bank in self.banks))
        if not 1 <= truncate_dim <= width:
            raise UserError(f"truncate_dim = {truncate_dim}: choose 1 to {width}.")
        return truncate_dim


def warn_of_losses(
    encoder: SentenceEncoder, since: tuple[int, int, int] = (0, 0, 0), name: str = "sentences"
) -> None:
    """Warns of cut sentences and unknown characters since the encoder had the given counts.

    The counts are `truncated`, `unknown` and `characters`; `name` is what the sentences are called.
    """
    if cut := encoder.truncated - since[0]:
        limits = " and ".join(str(bank.serving_length) for bank in encoder.banks)
        logger.warning("%s cut at %s tokens: %s.", name, limits, f"{cut:,}")
    characters = encoder.characters - since[2]
    warn_of_unknown(name, encoder.unknown - since[1], characters)


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
