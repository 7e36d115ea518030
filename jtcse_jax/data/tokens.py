"""Tokenises a source once, into a memory-mapped cache keyed by text, tokenizer and max_len."""

import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase

from jtcse_jax.data.sources import Source
from jtcse_jax.data.token_parts import LENGTHS, TOKENS, TokenParts, publish, token_dtype
from jtcse_jax.errors import UserError
from jtcse_jax.user_path import user_path

_META, _STARTS = "meta.json", "starts.bin"
_FILES = (_META, _STARTS, LENGTHS, TOKENS)
_FORMAT = 3
_COUNTED = ("blank", "truncated", "characters", "unknown")  # besides sentences and tokens
_STRIDE = 64  # the start of every 64th sentence is stored; the rest are computed from lengths
_LONGEST = 65535  # lengths are stored in 16 bits

_log = logging.getLogger(__name__)


class TokenCache:
    """The tokens of every sentence of a source, read from disk on demand.

    Nothing is read ahead: opening a cache costs the same for a thousand sentences and a billion.
    Special tokens are included. In a source of pairs, sentences 2i and 2i + 1 are pair i.

    Attributes:
        folder: the folder of its files.
        lengths: [len(self)] uint16, tokens of each sentence, mapped from disk.
        views: 1 for single sentences, 2 for pairs.
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
            UserError: the folder is absent, truncated or unfinished, or its files do not match
                each other. Changed bytes inside a file are not detected here.
        """
        self.folder = folder = Path(folder)
        try:
            if not all((folder / name).is_file() for name in _FILES):
                raise ValueError("a file is absent or not a regular file")
            meta = json.loads((folder / _META).read_text(encoding="utf-8"))
            if not _is_meta(meta):
                raise ValueError("meta.json has the wrong format")
            self.lengths: np.ndarray = _mapped(folder / LENGTHS, np.uint16)
            self._starts = _mapped(folder / _STARTS, np.int64)
            self._tokens = _mapped(folder / TOKENS, token_dtype(meta["vocab_size"]))
            self.views: int = meta["views"]
            self.pad_id: int = meta["pad_id"]
            self.max_len: int = meta["max_len"]
            self.vocab_size: int = meta["vocab_size"]
            self.stats: dict[str, Any] = meta["stats"]
            last_block = self.lengths[_STRIDE * (len(self._starts) - 1) :]
            intact = (
                len(self.lengths) == self.stats["sentences"]
                and len(self._starts) == math.ceil(len(self.lengths) / _STRIDE)
                and len(self._tokens) == meta["tokens"]
                and int(self._starts[-1]) + int(last_block.sum()) == meta["tokens"]
            )
        except (OSError, ValueError, LookupError, TypeError, EOFError, RecursionError):
            intact = False
        if not intact:
            raise UserError(f"the token cache {folder} is damaged or not finished; delete it")

    def __len__(self) -> int:
        """Sentences stored, two for each pair."""
        return len(self.lengths)

    def sentence(self, index: int) -> np.ndarray:
        """[lengths[index]] int32, the token ids of a sentence.

        Raises UserError if they would lie outside the file.
        """
        index = range(len(self))[index]
        return self._read(index, int(self.lengths[index]))

    def run(self, start: int, stop: int) -> np.ndarray:
        """int32, the token ids of sentences `start` to `stop` - 1, one sentence after another.

        Raises UserError if they would lie outside the file, or an id outside the vocabulary.
        """
        tokens = self._read(start, int(self.lengths[start:stop].sum(dtype=np.int64)))
        highest = tokens.view(np.uint32).max(initial=0)
        if highest >= self.vocab_size:
            raise self.damaged(f"token id {highest}, in a vocabulary of {self.vocab_size}")
        return tokens

    def _read(self, index: int, count: int) -> np.ndarray:
        """The `count` tokens that start at the first token of a sentence."""
        known, between = divmod(index, _STRIDE)
        start = int(self._starts[known]) + sum(self.lengths[index - between : index].tolist())
        if not 0 <= start <= start + count <= len(self._tokens):
            raise self.damaged(f"sentence {index} lies outside of {TOKENS}")
        return self._tokens[start : start + count].astype(np.int32)

    def damaged(self, why: str) -> UserError:
        """The error for bytes that cannot be right, detected while reading."""
        return UserError(f"the token cache {self.folder} is damaged ({why}); delete it")


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
    folder and the same tokens. Several processes that ask for it at once share the work
    (`data.token_parts`), and the work of a killed process is resumed. The folder appears only
    when it is complete. A damaged cache is rebuilt.

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
    folder = cache_folder(source, backend, cache_dir)
    intact = partial(_intact, folder, source.views, max_len)
    if (cache := intact()) is not None:
        return cache
    if folder.exists():
        _log.warning("the token cache %s is damaged: tokenising again", folder)
    parts = parts_of(source, backend, folder)
    try:
        parts.begin()
        # Checked again: another process may have finished and removed the parts in between.
        if intact() is None:
            with _shown(source.spec, progress) as advance:
                parts.make_all(advance)
            with parts.locked(source.num_shards, wait=True):
                if intact() is None:
                    with parts.aside() as unfinished:
                        _write(parts, source, tokenizer.pad_token_id, max_len, unfinished)
                        publish(unfinished, folder, lambda: intact() is not None)
        parts.remove()
    except UserError as error:
        # The text has an error: once corrected, it is another text with other parts. After an
        # operating system error, which has a number, the text is the same, so its parts are kept.
        if getattr(error.__cause__, "errno", None) is None:
            parts.remove()
        raise
    except OSError as error:
        removed = not parts.exist() or intact() is not None
        if isinstance(error, FileNotFoundError) and removed:
            # Another process has finished or found an error in the text: so will this one.
            return tokenize(source, tokenizer, max_len, cache_dir, progress=progress)
        raise UserError(
            f"cannot write the token cache {folder}: {error.strerror or error}; free space there "
            "and run the same command again to resume, or choose another cache folder"
        ) from error
    return TokenCache(folder)


def cache_folder(source: Source, backend: tokenizers.Tokenizer, cache_dir: Path | str) -> Path:
    """The folder of a text's cache, existing or not; `backend` is from `truncating_backend`."""
    assert backend.truncation is not None  # `truncating_backend` has set it
    parts = [source.fingerprint(), backend.to_str(), backend.truncation["max_length"], _FORMAT]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return user_path(cache_dir) / key


def parts_of(source: Source, backend: tokenizers.Tokenizer, folder: Path) -> TokenParts:
    """The parts of a cache, shared by all processes that tokenise the text."""
    return TokenParts(source, backend, folder.with_name(f".{folder.name}.parts"))


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


def _intact(folder: Path, views: int, max_len: int) -> TokenCache | None:
    try:
        cache = TokenCache(folder)
    except UserError:
        return None
    return cache if (cache.views, cache.max_len) == (views, max_len) else None


def _is_meta(meta: dict[str, Any]) -> bool:
    """Whether it has the format that `_write` writes: a cache may come from an untrusted source.

    Above all, bytes read as another dtype could be pointers, which numpy would follow.
    """
    stats, vocab_size, tokens = meta["stats"], meta["vocab_size"], meta["tokens"]
    sentences = stats["sentences"]
    counts = [meta[name] for name in ("tokens", "views", "pad_id", "max_len", "vocab_size")]
    counts += [stats[name] for name in ("sentences", *_COUNTED)]
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and meta["pad_id"] < vocab_size <= 2**31
        and meta["dtype"] == token_dtype(vocab_size).str
        and meta["views"] in (1, 2)
        and sentences % meta["views"] == 0
        and 1 <= meta["max_len"] <= _LONGEST
        and 0 < tokens <= sentences * meta["max_len"]
        and stats["truncated"] <= sentences
        and stats["unknown"] <= stats["characters"]
        and stats["mean_length"] == tokens / sentences
        and isinstance(stats["source"], str)
    )


def _write(parts: TokenParts, source: Source, pad_id: int, max_len: int, folder: Path) -> None:
    counts = parts.join(folder)
    (folder / _STARTS).write_bytes(_starts(_mapped(folder / LENGTHS, np.uint16)).data)
    meta = {
        "format": _FORMAT,
        "dtype": parts.dtype.str,
        "tokens": counts["tokens"],
        "views": source.views,
        "pad_id": pad_id,
        "max_len": max_len,
        "vocab_size": parts.vocab_size,
        "stats": {
            "source": source.spec,
            "sentences": counts["sentences"],
            **{name: counts[name] for name in _COUNTED},
            "mean_length": counts["tokens"] / counts["sentences"],
        },
    }
    (folder / _META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


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
