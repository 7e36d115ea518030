"""The tokens of a source's shards, made by any number of processes at once and then joined.

A part is a folder with the tokens, lengths and counts of one shard. It is written under a temporary
name and then renamed. Its content is a function of the shard, so it does not matter which process
makes it, or how often. A process locks the shard it works on, so processes share the work, on one
host or on several with a common file system. The system drops the lock of a process that ends for
any reason, and another one takes the shard. If files cannot be locked, work is done twice.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import numpy as np
import tokenizers

from jtcse_jax.data.sources import Source
from jtcse_jax.data.unknown import UnknownCounter
from jtcse_jax.runtime.locks import lock_byte

TOKENS, LENGTHS, COUNTS = "tokens.bin", "lengths.bin", "counts.json"
_BLOCK = 1024  # sentences tokenised at once by the Rust threads; more would exceed the CPU caches
_COPIED = 2**20
_REMAINS = ".removed."  # in the name of a folder of parts that are no longer needed
_TRIES = 3  # another process may still add a file after a folder was listed


class TokenParts:
    """The parts of a source in a folder, shared by all processes that make them.

    Attributes:
        dtype: dtype of the tokens, see `token_dtype`.
        vocab_size: an upper bound of all ids.
    """

    def __init__(self, source: Source, backend: tokenizers.Tokenizer, folder: Path):
        """Takes a tokenizer that truncates and does not pad; makes nothing yet."""
        # A vocabulary may have gaps, so its size does not give its highest id.
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.dtype = token_dtype(self.vocab_size)
        self._source = source
        self._backend = backend
        self._folder = folder

    def begin(self) -> None:
        """Makes the folder of all parts. No other method does, even if it has been removed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # Leftovers of parts, of any text, whose removal was interrupted.
        for remains in self._folder.parent.glob(f"*{_REMAINS}*"):
            _remove(remains)

    def make_all(self, advance: Callable[[int], None]) -> None:
        """Makes the missing parts, in parallel with other processes; returns when none is missing.

        First the shards that no process works on, then those that another left unfinished. Calls
        `advance` with the number of sentences made. Raises FileNotFoundError if another process
        removed the parts.
        """
        wait = False
        while missing := [n for n in range(self._source.num_shards) if not self._counts(n)]:
            for number in missing:
                with self.locked(number, wait=wait) as ours:
                    if ours:
                        self.make(number, advance)
            wait = True

    def portable(self) -> tuple[str, str]:
        """The tokenizer and the folder, in a form that can be sent to another machine."""
        return self._backend.to_str(), str(self._folder.absolute())

    def make(self, number: int, advance: Callable[[int], None] = lambda sentences: None) -> None:
        """Makes the part of a shard, unless it exists."""
        if self._counts(number):
            return
        with self.aside() as unfinished:
            counts = self._write(number, unfinished, advance)
            (unfinished / COUNTS).write_text(json.dumps(counts), encoding="utf-8")
            publish(unfinished, self._part(number), lambda: bool(self._counts(number)))

    def join(self, folder: Path) -> dict[str, int]:
        """Writes the tokens and lengths of all parts, in order; returns the sums of the counts.

        Raises UserError if all parts are empty.
        """
        parts = [self._part(number) for number in range(self._source.num_shards)]
        for name in (TOKENS, LENGTHS):
            with open(folder / name, "wb") as whole:
                for part in parts:
                    with open(part / name, "rb") as file:
                        shutil.copyfileobj(file, whole, _COPIED)
        counts = [json.loads((part / COUNTS).read_text(encoding="utf-8")) for part in parts]
        sums = {name: sum(each[name] for each in counts) for name in counts[0]}
        if not sums["sentences"]:
            raise self._source.without_text()
        return sums

    @contextmanager
    def locked(self, number: int, *, wait: bool) -> Iterator[bool]:
        """Locks a shard while the block runs, if it is free; `num_shards` is for joining."""
        with open(self._folder / "lock", "ab") as file:
            try:
                ours = lock_byte(file, number, wait=wait)
            except OSError:  # a file system without locks: work is done twice
                ours = True
            yield ours

    @contextmanager
    def aside(self) -> Iterator[Path]:
        """A new folder beside the parts, removed at the end unless it was renamed."""
        unfinished = self._folder / f".{uuid.uuid4().hex}"
        try:
            unfinished.mkdir()
            yield unfinished
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def exist(self) -> bool:
        """Whether a process has begun the parts and none has removed them."""
        return self._folder.is_dir()

    def remove(self) -> None:
        """Removes all parts at once: a later process starts from the beginning."""
        remains = self._folder.with_name(f"{self._folder.name}{_REMAINS}{uuid.uuid4().hex}")
        try:
            self._folder.rename(remains)
        except FileNotFoundError:
            return
        _remove(remains)

    def _part(self, number: int) -> Path:
        # The name has the number of shards, so parts of another division are not mixed in.
        return self._folder / f"{number:06}-of-{self._source.num_shards:06}"

    def _counts(self, number: int) -> dict[str, int] | None:
        """The counts of a part; None if it is absent or incomplete."""
        part = self._part(number)
        try:
            counts = json.loads((part / COUNTS).read_text(encoding="utf-8"))
            whole = (part / TOKENS).stat().st_size == counts["tokens"] * self.dtype.itemsize and (
                part / LENGTHS
            ).stat().st_size == counts["sentences"] * 2
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return counts if whole else None

    def _write(self, number: int, folder: Path, advance: Callable[[int], None]) -> dict[str, int]:
        sentences = num_tokens = truncated = characters = unknown = 0
        counter = UnknownCounter(self._backend)
        assert self._backend.truncation is not None  # `truncating_backend` has set it
        max_len = self._backend.truncation["max_length"]
        with open(folder / TOKENS, "wb") as token_file, open(folder / LENGTHS, "wb") as length_file:
            for block in _blocks(self._source.read_shard(number)):
                encodings = self._backend.encode_batch_fast(block)
                ids = [encoding.ids for encoding in encodings]
                flat = np.fromiter(chain.from_iterable(ids), self.dtype)
                # Not `tofile`, which hides that the disk was full for the last bytes.
                token_file.write(flat.data)
                length_file.write(np.fromiter(map(len, ids), "<u2", len(ids)).data)
                sentences += len(ids)
                characters += sum(map(len, block))
                unknown += int(counter.count(block, ids).sum())
                num_tokens += len(flat)
                # Only a sentence of max_len tokens can have been cut; the check is slow.
                truncated += sum(
                    len(tokens) == max_len and bool(encoding.overflowing)
                    for tokens, encoding in zip(ids, encodings, strict=True)
                )
                advance(len(ids))
        return {
            "sentences": sentences,
            "tokens": num_tokens,
            "blank": self._source.blank,
            "truncated": truncated,
            "characters": characters,
            "unknown": unknown,
        }


def token_dtype(vocab_size: int) -> np.dtype:
    """The little-endian dtype of stored tokens: 16 bits if the vocabulary fits, else 32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def publish(unfinished: Path, folder: Path, is_whole: Callable[[], bool]) -> None:
    """Renames a finished folder, replacing a damaged one; keeps an existing complete one.

    Another process can write the folder first if files cannot be locked; it holds the same.
    """
    try:
        unfinished.rename(folder)
    except OSError:
        if not is_whole():
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)


def _remove(folder: Path) -> None:
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return


def _blocks(sentences: Iterator[str]) -> Iterator[list[str]]:
    while block := list(islice(sentences, _BLOCK)):
        yield block
