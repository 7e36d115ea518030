"""Reads SentEval's transfer tasks in its file layouts: labelled sentences or sentence pairs.

MR and CR: reviews, negative or positive; SUBJ: subjective or objective; MPQA: opinion phrases;
SST2: film reviews with a development split; TREC: six types of question; MRPC: paraphrase or not.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jtcse_jax.errors import UserError
from jtcse_jax.user_path import user_path

# Relative to SentEval's `downstream`. One file per class (0, 1) or per split (train, [dev,] test).
FILES = {
    "MR": ("MR/rt-polarity.neg", "MR/rt-polarity.pos"),
    "CR": ("CR/custrev.neg", "CR/custrev.pos"),
    "SUBJ": ("SUBJ/subj.subjective", "SUBJ/subj.objective"),
    "MPQA": ("MPQA/mpqa.neg", "MPQA/mpqa.pos"),
    "SST2": tuple(f"SST/binary/sentiment-{split}" for split in ("train", "dev", "test")),
    "TREC": ("TREC/train_5500.label", "TREC/TREC_10.label"),
    "MRPC": ("MRPC/msr_paraphrase_train.txt", "MRPC/msr_paraphrase_test.txt"),
}
QUESTIONS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Sentences with a class each; `len` is the number of sentences."""

    first: list[str]
    second: list[str] | None  #: the second sentence of each pair, or None for single sentences
    labels: np.ndarray  #: [n] int64, from 0

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, eq=False)
class TransferTask:
    """One task. Without a test split, `train` has all sentences and is cross-validated."""

    name: str
    train: Labelled
    dev: Labelled | None = None
    test: Labelled | None = None

    @property
    def splits(self) -> list[Labelled]:
        """The splits that exist."""
        return [split for split in (self.train, self.dev, self.test) if split is not None]


def load_transfer(folder: str | Path) -> tuple[list[TransferTask], dict[str, str]]:
    """Returns the tasks whose files exist, and for every other task its missing files, by name.

    `folder` is SentEval's `downstream`. Words are joined by single spaces, as in the input of
    SentEval's encoders. Files are UTF-8, with or without a byte-order mark; those that SentEval
    reads as Latin-1 (all but SST2 and MRPC) may also be Latin-1. A blank line of MR, CR, SUBJ or
    MPQA is an empty sentence: the published files have some, and SentEval counts them (CR 3775,
    MPQA 10606).

    Raises `UserError` if no task is there, and for a malformed line, by file and line.
    """
    folder = user_path(folder)
    tasks, missing = [], {}
    for name, files in FILES.items():
        paths = [folder / file for file in files]
        absent = [str(path) for path in paths if not path.is_file()]
        if absent:
            missing[name] = f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing"
        else:
            tasks.append(_read(name, paths))
    if not tasks:
        raise UserError(
            f"{folder}: no transfer task in SentEval's layout ({missing['CR']}, and so on); "
            "give the folder with CR, MPQA, TREC, ..."
        )
    return tasks, missing


def _read(name: str, paths: list[Path]) -> TransferTask:
    if name == "SST2":
        train, dev, test = map(_read_treebank, paths)
        return TransferTask(name, train, dev, test)
    if name == "TREC":
        train, test = map(_read_questions, paths)
        return TransferTask(name, train, test=test)
    if name == "MRPC":
        train, test = map(_read_paraphrases, paths)
        return TransferTask(name, train, test=test)
    return TransferTask(name, _read_classes(paths))


def _read_classes(paths: list[Path]) -> Labelled:
    classes = [[_words(line) for line in _lines(path, latin_1=True)] for path in paths]
    labels = np.repeat(np.arange(len(classes)), [len(sentences) for sentences in classes])
    return Labelled([sentence for one in classes for sentence in one], None, labels)


def _read_treebank(path: Path) -> Labelled:
    sentences, labels = [], []
    for number, line in enumerate(_lines(path), start=1):
        sentence, label = _columns(line, ("sentence", "label"), path, number)
        sentences.append(_sentence(sentence, path, number))
        labels.append(_binary(label, path, number))
    return Labelled(sentences, None, np.array(labels))


def _read_questions(path: Path) -> Labelled:
    sentences, labels = [], []
    for number, line in enumerate(_lines(path, latin_1=True), start=1):
        kind, _, rest = line.partition(":")
        _, _, sentence = rest.partition(" ")  # drops the fine-grained type
        if kind not in QUESTIONS:
            raise UserError(
                f"{path}:{number}: the line does not start with a type and a colon "
                f"({', '.join(QUESTIONS)}); write it as in 'NUM:dist How far is it ?'"
            )
        sentences.append(_sentence(sentence, path, number))
        labels.append(QUESTIONS.index(kind))
    return Labelled(sentences, None, np.array(labels))


def _read_paraphrases(path: Path) -> Labelled:
    header, *lines = _lines(path)
    columns = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    if header.strip().split("\t") != list(columns):
        raise UserError(
            f"{path}:1: the header is not {'<TAB>'.join(columns)}; fetch the file again"
        )
    if not lines:
        raise UserError(f"{path}: has no sentence pairs; fetch the file again")
    first, second, labels = [], [], []
    for number, line in enumerate(lines, start=2):
        label, _, _, one, two = _columns(line, columns, path, number)
        first.append(_sentence(one, path, number))
        second.append(_sentence(two, path, number))
        labels.append(_binary(label, path, number))
    return Labelled(first, second, np.array(labels))


def _lines(path: Path, latin_1: bool = False) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    content = content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n")
    if not content.strip():
        raise UserError(f"{path}: has no sentences; fetch the file again")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        if not latin_1:
            number = content.count(b"\n", 0, error.start) + 1
            raise UserError(f"{path}:{number}: not UTF-8 text; convert the file to UTF-8") from None
        text = content.decode("latin-1")
    # Only line feeds end a line: str.splitlines would also split at a dash or dots of Windows-1252,
    # which Latin-1 decodes as control characters.
    return text.split("\n")


def _words(text: str) -> str:
    return " ".join(text.split())


def _sentence(text: str, path: Path, number: int) -> str:
    sentence = _words(text)
    if not sentence:
        raise UserError(f"{path}:{number}: a sentence is empty; fill it in or remove the line")
    return sentence


def _columns(line: str, names: tuple[str, ...], path: Path, number: int) -> list[str]:
    fields = line.split("\t")
    if len(fields) != len(names):
        raise UserError(
            f"{path}:{number}: {len(fields)} tab-separated columns instead of {len(names)} "
            f"({', '.join(names)}); correct or remove the line"
        )
    return fields


def _binary(label: str, path: Path, number: int) -> int:
    if label.strip() not in ("0", "1"):
        raise UserError(f"{path}:{number}: the label {label.strip()!r} is not 0 or 1; correct it")
    return int(label)
