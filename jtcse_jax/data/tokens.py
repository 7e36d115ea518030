"""Tokenises a source once, into a memory-mapped cache keyed by text, tokenizer and max_len."""

import hashlib
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase

from jtcse_jax.data.sources import Source
from jtcse_jax.data.unknown import UnknownCounter
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.files import read_json
from jtcse_jax.runtime.output import Gone, Output
from jtcse_jax.user_path import user_path

_META, _STARTS, _LENGTHS, _TOKENS = "meta.json", "starts.bin", "lengths.bin", "tokens.bin"
_FORMAT = 3
_COUNTED = ("blank", "truncated", "characters", "unknown")  # besides sentences and tokens
_STRIDE = 64  # the start of every 64th sentence is stored; the rest are computed from lengths
_LONGEST = 65535  # lengths are stored in 16 bits
_BLOCK = 1024  # sentences tokenised at once by the Rust threads; more would exceed the CPU caches

_log = logging.getLogger(__name__)


class TokenCache:
    """The tokens of every sentence of a source, read from disk on demand.

    Nothing is read ahead: opening a cache costs the same for a thousand sentences and a billion.
    Special tokens are included. In a source of pairs, sentences 2i and 2i + 1 are pair i.

    Attributes:
        folder: the folder of its files.
        lengths: [len(self)] uint16, tokens of each sentence, mapped from disk.
        views: 1 for single sentences, 2 for pairs, more for pairs with hard negatives.
        pad_id: the tokenizer's padding token.
        max_len: longest sentence allowed, in tokens; longer ones were truncated.
        vocab_size: an upper bound of all ids of the tokenizer.
        stats: `source` (its spec), `sentences`, `blank` (lines skipped), `truncated`
            (sentences cut to max_len), `characters`, `unknown` (characters that the tokenizer
            does not know), `mean_length` (in tokens).
    """

    def __init__(self, folder: Path | str):
        """Maps a finished cache folder into memory.

        Raises:
            UserError: a file is absent or has another size than it was written with. Changed bytes
                inside a file are not detected here.
        """
        self.folder = folder = Path(folder)
        meta = read_json(folder / _META, advice=f"delete {folder}")
        self.views: int = meta["views"]
        self.pad_id: int = meta["pad_id"]
        self.max_len: int = meta["max_len"]
        self.vocab_size: int = meta["vocab_size"]
        self.stats: dict[str, Any] = meta["stats"]
        sentences, dtype = self.stats["sentences"], token_dtype(self.vocab_size)
        self.lengths = self._mapped(_LENGTHS, np.dtype("<u2"), sentences)
        self._starts = self._mapped(_STARTS, np.dtype("<i8"), math.ceil(sentences / _STRIDE))
        self._tokens = self._mapped(_TOKENS, dtype, meta["tokens"])

    def __len__(self) -> int:
        """Sentences stored, each view of a pair counted."""
        return len(self.lengths)

    def sentence(self, index: int) -> np.ndarray:
        """[lengths[index]] int32, the token ids of a sentence."""
        index = range(len(self))[index]
        known, between = divmod(index, _STRIDE)
        start = int(self._starts[known]) + sum(self.lengths[index - between : index].tolist())
        return self._tokens[start : start + int(self.lengths[index])].astype(np.int32)

    def damaged(self, why: str) -> UserError:
        """The error for bytes that cannot be right, detected while reading."""
        return UserError(f"the token cache {self.folder} is damaged ({why}); delete it")

    def _mapped(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        path = self.folder / name
        if not path.is_file() or path.stat().st_size != count * dtype.itemsize:
            raise self.damaged(f"{name} is absent or incomplete")
        return _mapped(path, dtype)


def tokenize(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    max_len: int,
    cache_dir: Path | str,
    *,
    progress: bool = True,
) -> TokenCache:
    """The token cache of a source, made in `cache_dir` unless it is already there.

    The key of a cache is its content: the same text, tokenizer and `max_len` give the same folder
    and the same tokens. Several processes that ask for it at once share the work, shard by shard,
    and the work of a killed process is resumed (`runtime.output`). The folder appears only when it
    is complete. A damaged cache is rebuilt.

    Args:
        source: the text.
        tokenizer: a fast tokenizer of transformers; it is not changed.
        max_len: tokens kept of a sentence, special tokens included.
        cache_dir: the folder of all caches, made if absent.
        progress: show a progress bar, if stderr is a terminal.

    Raises:
        UserError: the text has an error, the tokenizer is not a fast one or has no padding
            token, `max_len` is out of range, or the cache cannot be written.
    """
    backend = truncating_backend(tokenizer, max_len)
    if not isinstance(tokenizer.pad_token_id, int):
        raise UserError("the tokenizer has no padding token; set its pad_token")
    output = unfinished_cache(source, backend, cache_dir)
    while not output.path.exists() or _is_damaged(output.path):
        try:
            if output.begin():
                with _shown(source.spec, progress) as advance:
                    for number in output.claim():
                        make_part(number, source, backend, output, advance)
                with output.last_step() as ours:
                    if ours:
                        _join(output, source, backend, tokenizer.pad_token_id)
        except Gone:
            pass  # another process has finished, or found an error in the text: so will this one
        except UserError as error:
            # A text with an error gets another key once it is corrected. After an error of the
            # operating system the text is the same, and its finished parts are kept.
            if not isinstance(error.__cause__, OSError):
                output.discard()
            raise
    return TokenCache(output.path)


def unfinished_cache(
    source: Source, backend: tokenizers.Tokenizer, cache_dir: Path | str
) -> Output:
    """The cache of a text, one part per shard; `backend` is from `truncating_backend`."""
    assert backend.truncation is not None  # `truncating_backend` has set it
    parts = [source.fingerprint(), backend.to_str(), backend.truncation["max_length"], _FORMAT]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return Output(user_path(cache_dir) / key, source.num_shards)


def truncating_backend(tokenizer: PreTrainedTokenizerBase, max_len: int) -> tokenizers.Tokenizer:
    """A copy of the tokenizer's Rust backend that truncates and never pads.

    Raises UserError for a slow tokenizer, or a `max_len` without room for a token.
    """
    rust = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(rust, tokenizers.Tokenizer):
        raise UserError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; load one with a tokenizer.json"
        )
    backend = tokenizers.Tokenizer.from_str(rust.to_str())
    shortest = backend.num_special_tokens_to_add(is_pair=False) + 1
    if not shortest <= max_len <= _LONGEST:
        raise UserError(
            f"max_len = {max_len}: with this tokenizer it must be from {shortest} to {_LONGEST} "
            "tokens"
        )
    backend.enable_truncation(max_len, direction=tokenizer.truncation_side)
    backend.no_padding()
    # Not part of the text of a Rust tokenizer: whether "[SEP]" in a sentence is plain text.
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def make_part(
    number: int,
    source: Source,
    backend: tokenizers.Tokenizer,
    output: Output,
    advance: Callable[[int], None] = lambda sentences: None,
) -> None:
    """Tokenises a shard into its part of the cache; calls `advance` with numbers of sentences.

    The part is a function of the shard, so it does not matter which process makes it, or how often.
    """
    assert backend.truncation is not None
    max_len, dtype = backend.truncation["max_length"], token_dtype(_vocab_size(backend))
    counts = dict.fromkeys(("sentences", "tokens", "truncated", "characters", "unknown"), 0)
    counter = UnknownCounter(backend)
    name = output.part(number)
    with (
        output.new_file(f"{name}.{_TOKENS}") as token_file,
        output.new_file(f"{name}.{_LENGTHS}") as length_file,
    ):
        sentences = source.read_shard(number)
        while block := list(islice(sentences, _BLOCK)):
            encodings = backend.encode_batch_fast(block)
            ids = [encoding.ids for encoding in encodings]
            flat = np.fromiter(chain.from_iterable(ids), dtype)
            token_file.write(flat.data)
            length_file.write(np.fromiter(map(len, ids), "<u2", len(ids)).data)
            counts["sentences"] += len(ids)
            counts["tokens"] += len(flat)
            counts["characters"] += sum(map(len, block))
            counts["unknown"] += int(counter.count(block, ids).sum())
            # Only a sentence of max_len tokens can have been cut; the check is slow.
            counts["truncated"] += sum(
                len(tokens) == max_len and bool(encoding.overflowing)
                for tokens, encoding in zip(ids, encodings, strict=True)
            )
            advance(len(ids))
    output.mark(number, counts | {"blank": source.blank})


def token_dtype(vocab_size: int) -> np.dtype:
    """The little-endian dtype of stored tokens: 16 bits if the vocabulary fits, else 32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _is_damaged(folder: Path) -> bool:
    """Whether an existing cache is damaged; then removes it."""
    try:
        TokenCache(folder)
    except UserError:
        _log.warning("the token cache %s is damaged: tokenising again", folder)
        shutil.rmtree(folder, ignore_errors=True)
        return True
    return False


def _join(output: Output, source: Source, backend: tokenizers.Tokenizer, pad_id: int) -> None:
    """Joins all parts and publishes them as a cache."""
    assert backend.truncation is not None
    vocab_size, sums = _vocab_size(backend), output.sums()
    if not sums["sentences"]:
        raise source.without_text()
    meta = {
        "format": _FORMAT,
        "dtype": token_dtype(vocab_size).str,
        "tokens": sums["tokens"],
        "views": source.views,
        "pad_id": pad_id,
        "max_len": backend.truncation["max_length"],
        "vocab_size": vocab_size,
        "stats": {
            "source": source.spec,
            "sentences": sums["sentences"],
            **{name: sums[name] for name in _COUNTED},
            "mean_length": sums["tokens"] / sums["sentences"],
        },
    }
    with output.aside() as folder:
        folder.mkdir()
        for name in (_TOKENS, _LENGTHS):
            output.join(name, folder / name)
        (folder / _STARTS).write_bytes(_starts(_mapped(folder / _LENGTHS, np.uint16)).data)
        (folder / _META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        output.publish(folder)


def _vocab_size(backend: tokenizers.Tokenizer) -> int:
    """An upper bound of all ids. A vocabulary may have gaps: its size is not its highest id."""
    return max(backend.get_vocab(with_added_tokens=True).values()) + 1


def _starts(lengths: np.ndarray) -> np.ndarray:
    """int64, the first token of every `_STRIDE`th sentence."""
    sums = np.add.reduceat(lengths, np.arange(0, len(lengths), _STRIDE), dtype=np.int64)
    return np.cumsum(sums) - sums


def _mapped(path: Path, dtype: np.typing.DTypeLike) -> np.ndarray:
    """A file as a plain array: slicing a `np.memmap` costs more."""
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


@contextmanager
def _shown(spec: str, progress: bool) -> Iterator[Callable[[int], None]]:
    """A function that counts sentences on a progress bar, if stderr is a terminal."""
    if not (progress and sys.stderr.isatty()):
        yield lambda sentences: None
        return
    text = TextColumn("tokenised {task.completed:,} sentences of {task.description}")
    with Progress(text, BarColumn(), TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        yield partial(bar.advance, bar.add_task(spec, total=None))
