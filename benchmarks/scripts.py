"""Tokenizers and sentence splitters on text of a script, from installed message catalogues.

    python -m benchmarks.scripts --language th --vocab-size 4096
    python -m benchmarks.scripts --language en --text wiki20k.txt --splitters

`--language` chooses the catalogues below `--catalogues`. With `--text`, a file of one sentence a
line is taken instead. The comparison of splitters needs `pip install sentencex pysbd`.

Tokenizers: four messages are joined and their spaces removed; a sixth of the result, chosen by
hash, is for testing. "lost" is the share of characters in [UNK], "only" the sentences without
another token, "bits" the entropy of the tokens, per character, by their frequencies in training.

Splitters: F1 of the ends of six sentences joined, each with one mark, at its end.
"""

import argparse
import collections
import gettext
import hashlib
import importlib
import itertools
import math
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer

from jtcse_jax.data import vocabulary
from jtcse_jax.data.cleaning import split
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.unknown import UnknownCounter

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_MARKS = "[.!?…。！？।॥؟۔။។։።]"
_JOINED_WITHOUT_SPACE = ("ja", "zh_CN", "my")
_NORMALIZER = normalizers.BertNormalizer(lowercase=True, strip_accents=False)


def messages(folder: Path, language: str) -> list[str]:
    """The distinct lines of all catalogues of a language, in the order of their files."""
    found: dict[str, None] = {}
    for path in sorted(folder.glob(f"{language}/LC_MESSAGES/*.mo")):
        try:
            with open(path, "rb") as file:
                texts = vars(gettext.GNUTranslations(file))["_catalog"].values()
        except UnicodeDecodeError:  # a few old catalogues name another encoding than their own
            continue
        lines = itertools.chain.from_iterable(text.splitlines() for text in texts)
        found |= dict.fromkeys(" ".join(line.split()) for line in lines)
    return [line for line in found if len(line) > 3]


def compare_tokenizers(lines: list[str], vocab_size: int) -> None:
    """Prints a line for each tokenizer."""
    joined = ["".join(lines[i : i + 4]).replace(" ", "") for i in range(0, len(lines), 4)]
    tested = {text for text in joined if hashlib.md5(text.encode()).digest()[0] < 43}
    training = [text for text in joined if text not in tested]
    for name, train in (
        ("BERT's WordPiece", _bert),
        ("ours", lambda file, size: vocabulary.train_tokenizer(open_source(file), size)),
        ("Unigram", _unigram),
        ("byte-level BPE", _byte_level),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.txt"
            path.write_text("\n".join(training), encoding="utf-8")
            start = time.process_time()
            trained = train(str(path), vocab_size)
            seconds = time.process_time() - start
        backend = getattr(trained, "backend_tokenizer", trained)
        print(f"{name}: {_figures(backend, training, sorted(tested))}, trained in {seconds:.1f} s")


def _figures(backend: Tokenizer, training: list[str], tested: list[str]) -> str:
    ids = [one.ids for one in backend.encode_batch(tested, add_special_tokens=False)]
    lost = int(UnknownCounter(backend).count(tested, ids).sum())
    characters = sum(map(len, tested))
    unknown = backend.token_to_id("[UNK]")
    only = sum(set(one) == {unknown} for one in ids)
    count = collections.Counter()
    for one in backend.encode_batch(training, add_special_tokens=False):
        count.update(one.ids)
    total = count.total() + backend.get_vocab_size() / 2
    known = [token for one in ids for token in one if token != unknown]
    bits = -sum(math.log2((count[token] + 0.5) / total) for token in known)
    tokens = sum(map(len, ids)) / characters
    return (
        f"{len(tested)} sentences, lost {lost / characters:.2%}, only {only}, "
        f"{tokens:.3f} tokens and {bits / (characters - lost):.2f} bits a character"
    )


def _bert(file: str, vocab_size: int) -> BertTokenizer:
    """The vocabulary of ours, with BERT's own splitting into words."""
    entries = vocabulary.train_tokenizer(open_source(file), vocab_size).get_vocab()
    return BertTokenizer(vocab=entries, strip_accents=False)


def _unigram(file: str, vocab_size: int) -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=_SPECIAL, unk_token="[UNK]", show_progress=False
    )
    return _trained(Tokenizer(models.Unigram()), pre_tokenizers.BertPreTokenizer(), trainer, file)


def _byte_level(file: str, vocab_size: int) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=_SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    # Its own regular expression would split words at vowel signs.
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    words = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), bytes_of])
    return _trained(Tokenizer(models.BPE()), words, trainer, file)


def _trained(tokenizer: Tokenizer, words, trainer, file: str) -> Tokenizer:
    tokenizer.normalizer, tokenizer.pre_tokenizer = _NORMALIZER, words
    tokenizer.train([file], trainer)
    return tokenizer


def compare_splitters(lines: list[str], language: str, *, whole: bool) -> None:
    """Prints a line for each splitter; `whole` takes all lines, not just clean sentences."""
    if not whole:
        lines = [line for line in lines if _is_sentence(line)]
        random.Random(0).shuffle(lines)
    lines = lines[:6000] if whole else lines[:600]
    groups = [lines[i : i + 6] for i in range(0, len(lines) - 5, 6)]
    space = "" if language in _JOINED_WITHOUT_SPACE else " "
    for name, splitter in _splitters(language.partition("_")[0]):
        right = found = both = 0
        start = time.process_time()
        for group in groups:
            true, ours = _ends(group), _ends(splitter(space.join(group)))
            right, found, both = right + len(true), found + len(ours), both + len(true & ours)
        speed = sum(map(len, lines)) / (time.process_time() - start) / 1e6
        f1 = 2 * both / (right + found)
        print(f"{name}: {len(lines)} sentences, F1 {f1:.3f}, {speed:.2f} million characters/s")


def _is_sentence(line: str) -> bool:
    one_mark = len(re.findall(_MARKS, line)) == 1 and re.fullmatch(f".*{_MARKS}", line)
    plain = not re.search("[%<{$/_]", line) and not line[0].islower()
    return len(line) > 25 and bool(one_mark) and plain


def _ends(sentences: Iterable[str]) -> set[int]:
    return set(itertools.accumulate(len("".join(one.split())) for one in sentences))


def _splitters(language: str) -> Iterable[tuple[str, Callable[[str], Iterable[str]]]]:
    yield "ours", split
    try:
        sentencex = importlib.import_module("sentencex")
        yield "sentencex", lambda text: sentencex.segment(language, text)
        pysbd = importlib.import_module("pysbd")
        try:
            segmenter = pysbd.Segmenter(language=language, clean=False)
        except ValueError:  # a language that it does not know
            segmenter = pysbd.Segmenter(language="en", clean=False)
        yield "pysbd", segmenter.segment
    except ImportError as error:
        print(f"{error.name} is not installed")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--language", required=True, help="name of a folder of catalogues")
    parser.add_argument("--catalogues", type=Path, default=Path("/usr/share/locale"))
    parser.add_argument("--text", help="sentences, one a line, instead of the catalogues")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--splitters", action="store_true", help="compare splitters")
    options = parser.parse_args()
    if options.text:
        lines = list(open_source(options.text).read())
    else:
        lines = messages(options.catalogues, options.language)
    if options.splitters:
        compare_splitters(lines, options.language, whole=bool(options.text))
    else:
        compare_tokenizers(lines, options.vocab_size)


if __name__ == "__main__":
    main()
