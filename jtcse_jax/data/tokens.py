"""Tokenises a source once, into a memory-mapped cache keyed by text, tokenizer and max_len."""

import hashlib
import json
import logging
import math
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path

import numpy as np
import tokenizers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase

from jtcse_jax.data.sources import Source
from jtcse_jax.errors import UserError

_FORMAT = 2
_BLOCK = 1024  # sentences tokenised at once by the Rust threads; more would leave the caches
_STRIDE = 64  # the start of every 64th sentence is stored; the others follow from lengths
_LONGEST = 65535  # lengths are stored in 16 bits

_log = logging.getLogger(__name__)


class TokenCache:
    """The tokens of every sentence of a source, read from disk when asked for.

    Nothing is read ahead: opening a cache costs the same for a thousand sentences and a billion.
    Special tokens are included. In a source of pairs sentences 2i and 2i + 1 are pair i.

    Attributes:
        lengths: [len(self)] uint16, tokens of each sentence, mapped from disk.
        views: 1 for single sentences, 2 for pairs.
        pad_id: the tokenizer's padding token.
        max_len: longest sentence allowed, in tokens; longer ones were truncated.
        vocab_size: all ids of the tokenizer are below it.
        stats: `source` (its spec), `sentences`, `blank` (lines skipped), `truncated`
            (sentences cut to max_len), `mean_length` (in tokens).
    """

    def __init__(self, folder: Path | str):
        """Maps a finished cache folder into memory.

        Raises:
            UserError: the folder is absent, cut short or not finished. Bytes that changed inside
                a file are not looked for.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            self.lengths: np.ndarray = _mapped(folder / "lengths.bin", np.uint16)
            self._starts = _mapped(folder / "starts.bin", np.int64)
            self._tokens = _mapped(folder / "tokens.bin", meta["dtype"])
            self.views: int = meta["views"]
            self.pad_id: int = meta["pad_id"]
            self.max_len: int = meta["max_len"]
            self.vocab_size: int = meta["vocab_size"]
            self.stats: dict[str, int | float | str] = meta["stats"]
            last_block = self.lengths[_STRIDE * (len(self._starts) - 1) :]
            end = int(self._starts[-1]) + int(last_block.sum())
            intact = (
                len(self.lengths) == self.stats["sentences"]
                and len(self._starts) == math.ceil(len(self.lengths) / _STRIDE)
                and end == len(self._tokens) == meta["tokens"]
            )
        except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError):
            intact = False
        if not intact:
            raise UserError(f"the token cache {folder} is damaged or not finished; delete it")

    def __len__(self) -> int:
        """Sentences stored, two for each pair."""
        return len(self.lengths)

    def sentence(self, index: int) -> np.ndarray:
        """[lengths[index]] int32, the token ids of a sentence."""
        index = range(len(self))[index]
        known, between = divmod(index, _STRIDE)
        start = int(self._starts[known]) + sum(self.lengths[index - between : index].tolist())
        return self._tokens[start : start + int(self.lengths[index])].astype(np.int32)


def tokenize(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    max_len: int,
    cache_dir: Path | str,
    *,
    progress: bool = True,
) -> TokenCache:
    """The token cache of a source, made in `cache_dir` unless it is already there.

    The key of a cache is its content: the same text, tokenizer and `max_len` give the same
    folder. It is written aside and appears whole or not at all, so several processes may ask
    for it at once; the first to finish is used by all. A damaged one is made anew.

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
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no padding token; set its pad_token")
    key = _cache_key(source, backend, max_len)
    folder = Path(cache_dir).expanduser() / key
    if folder.exists():
        try:
            return TokenCache(folder)
        except UserError:
            _log.warning("the token cache %s is damaged: tokenising again", folder)
    unfinished = folder.with_name(f".{key}.{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        _write(source, tokenizer, backend, max_len, unfinished, progress)
        _publish(unfinished, folder)
    except OSError as error:
        raise UserError(
            f"cannot write the token cache {folder}: {error.strerror or error}; free space "
            "there or choose another cache folder"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return TokenCache(folder)


def truncating_backend(tokenizer: PreTrainedTokenizerBase, max_len: int) -> tokenizers.Tokenizer:
    """A copy of the tokenizer's Rust half that truncates and never pads.

    Raises UserError for a slow tokenizer and a `max_len` without room for a token.
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
    return backend


def _cache_key(source: Source, backend: tokenizers.Tokenizer, max_len: int) -> str:
    parts = [source.fingerprint(), backend.to_str(), max_len, _FORMAT]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _write(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    backend: tokenizers.Tokenizer,
    max_len: int,
    folder: Path,
    progress: bool,
) -> None:
    # A vocabulary may have holes: its count says nothing of its highest id.
    vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    sentences = num_tokens = truncated = 0
    with (
        (folder / "tokens.bin").open("wb") as token_file,
        (folder / "lengths.bin").open("wb") as length_file,
    ):
        for block in _shown(_blocks(source.read()), source.spec, progress):
            encodings = backend.encode_batch_fast(block)
            ids = [encoding.ids for encoding in encodings]
            flat = np.fromiter(chain.from_iterable(ids), dtype)
            flat.tofile(token_file)
            np.fromiter(map(len, ids), np.uint16, len(ids)).tofile(length_file)
            sentences += len(ids)
            num_tokens += len(flat)
            # Only a full sentence can have been cut: most are spared the costly look.
            truncated += sum(
                len(tokens) == max_len and bool(encoding.overflowing)
                for tokens, encoding in zip(ids, encodings, strict=True)
            )
    _starts(_mapped(folder / "lengths.bin", np.uint16)).tofile(folder / "starts.bin")
    meta = {
        "format": _FORMAT,
        "dtype": dtype.str,
        "tokens": num_tokens,
        "views": source.views,
        "pad_id": tokenizer.pad_token_id,
        "max_len": max_len,
        "vocab_size": vocab_size,
        "stats": {
            "source": source.spec,
            "sentences": sentences,
            "blank": source.blank,
            "truncated": truncated,
            "mean_length": num_tokens / sentences,
        },
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def _blocks(sentences: Iterator[str]) -> Iterator[list[str]]:
    while block := list(islice(sentences, _BLOCK)):
        yield block


def _starts(lengths: np.ndarray) -> np.ndarray:
    """int64, the first token of every `_STRIDE`th sentence."""
    sums = np.add.reduceat(lengths, np.arange(0, len(lengths), _STRIDE), dtype=np.int64)
    return np.cumsum(sums) - sums


def _mapped(path: Path, dtype: np.typing.DTypeLike) -> np.ndarray:
    """A file as a plain array: slices of a `np.memmap` cost more."""
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


def _shown(blocks: Iterator[list[str]], spec: str, progress: bool) -> Iterator[list[str]]:
    """The same blocks, counted on a progress bar if stderr is a terminal."""
    text = TextColumn("tokenised {task.completed:,} sentences of {task.description}")
    console = Console(stderr=True)
    visible = progress and sys.stderr.isatty()
    bar_shown = Progress(text, BarColumn(), TimeElapsedColumn(), console=console)
    with bar_shown if visible else nullcontext() as bar:
        task = bar.add_task(spec, total=None) if bar else None
        for block in blocks:
            yield block
            if bar:
                bar.advance(task, len(block))


def _publish(unfinished: Path, folder: Path) -> None:
    """Renames the finished cache into its place, unless an intact one came first."""
    try:
        os.rename(unfinished, folder)
        return
    except OSError:
        if not folder.exists():
            raise
    try:
        TokenCache(folder)
    except UserError:
        damaged = unfinished.with_name(unfinished.name + ".damaged")
        os.rename(folder, damaged)
        shutil.rmtree(damaged, ignore_errors=True)
        _publish(unfinished, folder)
