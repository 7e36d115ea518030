"""The tokens of a source's shards, made by any number of processes at once and then joined.

A part is a folder of tokens, lengths and counts of one shard. It is written aside and appears
whole, and what is in it follows from the shard alone: who makes it, and how often, changes
nothing. Each shard is locked by whoever is at it, so that processes share the work, on one host or
on many with a common file system; the system drops the lock of a process that ends, however it
ends, and another one takes the shard. Where files cannot be locked, work is done twice.
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
from jtcse_jax.locks import lock_byte

TOKENS, LENGTHS, COUNTS = "tokens.bin", "lengths.bin", "counts.json"
_BLOCK = 1024  # sentences tokenised at once by the Rust threads; more would leave the caches
_COPIED = 2**20
_REMAINS = ".removed."  # in the name of a folder of parts that nobody wants any more
_TRIES = 3  # what another process was about to write may come after a folder was listed


class TokenParts:
    """The parts of a source in a folder, which all who make them have in common.

    Attributes:
        dtype: of the tokens, see `token_dtype`.
        vocab_size: all ids are below it.
    """

    def __init__(self, source: Source, backend: tokenizers.Tokenizer, folder: Path):
        """Takes a tokenizer that truncates and does not pad; makes nothing yet."""
        # A vocabulary may have holes: its count says nothing of its highest id.
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.dtype = token_dtype(self.vocab_size)
        self._source = source
        self._backend = backend
        self._folder = folder

    def begin(self) -> None:
        """Makes the folder of all parts: none of the other methods does, once others removed it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # Of parts, of whatever text, whose removal was killed.
        for remains in self._folder.parent.glob(f"*{_REMAINS}*"):
            _remove(remains)

    def make_all(self, advance: Callable[[int], None]) -> None:
        """Makes what is missing, beside others who do the same; returns when nothing is.

        First what nobody is at, then what somebody left. `advance` is told of the sentences made.
        Raises FileNotFoundError where others removed the parts.
        """
        wait = False
        while missing := [n for n in range(self._source.num_shards) if not self._counts(n)]:
            for number in missing:
                with self.locked(number, wait=wait) as ours:
                    if ours:
                        self.make(number, advance)
            wait = True

    def portable(self) -> tuple[str, str]:
        """The tokenizer and the folder, as they can be sent to another machine."""
        return self._backend.to_str(), str(self._folder.absolute())

    def make(self, number: int, advance: Callable[[int], None] = lambda sentences: None) -> None:
        """Makes the part of a shard, unless it is there."""
        if self._counts(number):
            return
        with self.aside() as unfinished:
            counts = self._write(number, unfinished, advance)
            (unfinished / COUNTS).write_text(json.dumps(counts), encoding="utf-8")
            publish(unfinished, self._part(number), lambda: bool(self._counts(number)))

    def join(self, folder: Path) -> dict[str, int]:
        """Writes the tokens and lengths of all parts, in their order; returns the sums of counts.

        Raises UserError where there is no sentence in any.
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
        """Whether a shard is ours alone, while the block runs; `num_shards` locks their joining."""
        with open(self._folder / "lock", "ab") as file:
            try:
                ours = lock_byte(file, number, wait=wait)
            except OSError:  # a file system without locks: work is done twice
                ours = True
            yield ours

    @contextmanager
    def aside(self) -> Iterator[Path]:
        """A new folder beside the parts, removed afterwards unless it was renamed."""
        unfinished = self._folder / f".{uuid.uuid4().hex}"
        try:
            unfinished.mkdir()
            yield unfinished
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def exist(self) -> bool:
        """Whether anybody has begun, and nobody removed them."""
        return self._folder.is_dir()

    def remove(self) -> None:
        """Removes all parts, in one piece: whoever comes now begins anew."""
        remains = self._folder.with_name(f"{self._folder.name}{_REMAINS}{uuid.uuid4().hex}")
        try:
            self._folder.rename(remains)
        except FileNotFoundError:
            return
        _remove(remains)

    def _part(self, number: int) -> Path:
        # Their number is in the name: one that a different division left is another's.
        return self._folder / f"{number:06}-of-{self._source.num_shards:06}"

    def _counts(self, number: int) -> dict[str, int] | None:
        """The counts of a part; None where it is not there, or not whole."""
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
        sentences = num_tokens = truncated = 0
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
                num_tokens += len(flat)
                # Only a full sentence can have been cut: most are spared the costly look.
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
        }


def token_dtype(vocab_size: int) -> np.dtype:
    """How tokens are stored, little-endian: in 16 bits where the vocabulary allows, else in 32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def publish(unfinished: Path, folder: Path, is_whole: Callable[[], bool]) -> None:
    """Gives a folder its name in the place of a damaged one, or leaves another's that is whole.

    Another's comes in between where files cannot be locked, and holds the same.
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
