"""Reads sentence pairs with human similarity scores: STS test sets, own files, the built-in set."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jtcse_jax.data import text_files
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.scored_pairs import is_number, read_rows
from jtcse_jax.user_path import user_path

# The subsets are listed, not searched for: a missing or an extra file (SMT of STS13, which has
# scores but no published sentences) would otherwise silently change the score.
SUBSETS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
SPLITS = ("train", "dev", "test")
_SEMEVAL = "STS.input."


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sentence pairs with a human similarity score each; `len` is the number of pairs."""

    first: list[str]
    second: list[str]
    gold: np.ndarray  #: [n] float64, on the scale of the data

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, eq=False)
class StsTask:
    """One test set with its subsets."""

    name: str
    subsets: dict[str, Pairs]

    @property
    def pairs(self) -> Pairs:
        """All subsets, concatenated in order (the "all" setting)."""
        parts = list(self.subsets.values())
        return Pairs(
            first=[sentence for part in parts for sentence in part.first],
            second=[sentence for part in parts for sentence in part.second],
            gold=np.concatenate([part.gold for part in parts]),
        )


def load_sts(path: str | Path) -> tuple[list[StsTask], dict[str, str]]:
    """Returns STS12 to STS16, STS-B and SICK-R (test splits), and the reasons for missing ones.

    `path` is a folder in SentEval's layout, `downstream/STS` (with SICK beside it) or `downstream`
    itself; or a file for `load_pairs`, which becomes one task of that name. STS-B is read from
    `STSBenchmark/sts-test.csv`, the file behind published scores. Unscored pairs (a blank score
    line) are left out. A task with a missing file is left out and listed in `{task: reason}`.
    Raises `UserError` if no task is there, and for a malformed line, by file and line.
    """
    path = user_path(path).absolute()  # SICK lies beside `.` as well
    if not path.is_dir():
        return [StsTask(path.stem, {"all": load_pairs(path)})], {}
    root = path / "STS" if (path / "STS").is_dir() else path
    sick = root.parent / "SICK" / "SICK_test_annotated.txt"
    benchmark = _benchmark_file(root, "test") or root / "STSBenchmark" / "sts-test.csv"
    tasks, missing = [], {}
    for name, subsets in _task_files(root).items():
        absent = [file for both in subsets.values() for file in both if not file.is_file()]
        if absent:
            missing[name] = _absent(absent)
        else:
            parts = {subset: _read_semeval(*both) for subset, both in subsets.items()}
            tasks.append(StsTask(name, parts))
    for name, file in (("STS-B", benchmark), ("SICK-R", sick)):
        if file.is_file():
            tasks.append(StsTask(name, {"test": load_pairs(file)}))
        else:
            missing[name] = _absent([file])
    if not tasks:
        raise UserError(
            f"{path}: no STS task in SentEval's layout; give the folder with STS12-en-test, "
            "STSBenchmark or another of them"
        )
    return tasks, missing


def load_pairs(path: str | Path, split: str = "dev") -> Pairs:
    """Returns the scored pairs of a file, or of the `split` of an STS-Benchmark folder.

    A file has one of the layouts of `scored_pairs`; `STS.input.NAME.txt` of SemEval has its scores
    beside it in `STS.gs.NAME.txt`. Blank lines are skipped. A folder is searched for the files
    `sts-train.csv`, `sts-dev.csv` or `sts-test.csv`, also in `STSBenchmark/` and `stsbenchmark/`.

    Raises `UserError` for a missing or empty file, unknown columns, a malformed line (by file and
    line), an unknown split, and for pairs that all have the same score, because they cannot be
    ranked.
    """
    path = user_path(path)
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    if path.is_dir():
        found = _benchmark_file(path, split)
        if found is None:
            raise UserError(f"{path}: no sts-{split}.csv in this folder; name the file itself")
        path = found
    if path.name.startswith(_SEMEVAL):
        return _read_semeval(path, path.with_name("STS.gs." + path.name.removeprefix(_SEMEVAL)))
    pairs = _pairs(read_rows(path))
    if len(pairs) < 2:
        raise UserError(
            f"{path}: {len(pairs)} sentence pairs; write two or more s1<TAB>s2<TAB>score lines"
        )
    if len(set(pairs.gold)) == 1:
        raise UserError(
            f"{path}: every pair has the score {pairs.gold[0]:g}; "
            "give pairs of different similarity to rank"
        )
    return pairs


def builtin_dev() -> Pairs:
    """Returns the package's own development set: 220 English pairs graded 0 to 5.

    It was written by hand for this project, before any model was trained, and must never be changed
    to suit a result. Half of it is in the style of technical documentation, half is everyday life.
    Grades follow the STS scale, with halves: 5 same meaning, 4 same except for unimportant details,
    3 roughly the same but important details differ or are missing, 2 not the same but sharing
    details (including negations and exchanged roles), 1 only the topic in common, 0 unrelated. Many
    paraphrases share few words and many unlike pairs share most of theirs, so counting common words
    is not enough.
    """
    with resources.as_file(resources.files("jtcse_jax.evaluation") / "dev.tsv") as path:
        return load_pairs(path)


def _task_files(root: Path) -> dict[str, dict[str, tuple[Path, Path]]]:
    """The sentence file and the score file, by task and subset."""
    return {
        task: {
            name: (
                root / f"{task}-en-test" / f"STS.input.{name}.txt",
                root / f"{task}-en-test" / f"STS.gs.{name}.txt",
            )
            for name in names
        }
        for task, names in SUBSETS.items()
    }


def _absent(files: list[Path]) -> str:
    return f"{files[0]} is missing" + f" and {len(files) - 1} more" * (len(files) > 1)


def _benchmark_file(folder: Path, split: str) -> Path | None:
    below = ("", "STSBenchmark", "stsbenchmark", "STSBenchmark/stsbenchmark")
    candidates = [folder / name / f"sts-{split}.csv" for name in below]
    return next((path for path in candidates if path.is_file()), None)


def _read_semeval(input_file: Path, gold_file: Path) -> Pairs:
    if not gold_file.is_file():
        raise UserError(f"{input_file}: its scores {gold_file.name} are not beside it; copy them")
    inputs, golds = _lines(input_file), _lines(gold_file)
    if len(inputs) != len(golds):
        raise UserError(
            f"{input_file}: {len(inputs)} pairs but {len(golds)} scores in {gold_file.name}; "
            "fetch both files again"
        )
    rows = []
    for number, (line, score) in enumerate(zip(inputs, golds, strict=True), start=1):
        if not score.strip():
            continue
        fields = line.split("\t")  # the raw files of 2016 have their sources in further columns
        if len(fields) < 2:
            raise UserError(f"{input_file}:{number}: one column; write a tab-separated pair")
        gold = _score(score, f"{gold_file}:{number}")
        rows.append((f"{input_file}:{number}", *fields[:2], gold))
    if len(rows) < 2:
        raise UserError(f"{gold_file}: {len(rows)} scores, two are needed; fetch the file again")
    return _pairs(rows)


def _lines(path: Path) -> list[str]:
    return [line for _, line in text_files.decoded_lines(path, text_files.WHOLE)]


def _pairs(rows: Iterable[tuple[str, Any, Any, Any]]) -> Pairs:
    """The pairs of rows (place, sentence, sentence, score). Raises UserError for bad cells."""
    first, second, gold = [], [], []
    for place, one, two, score in rows:
        first.append(_sentence(one, place))
        second.append(_sentence(two, place))
        gold.append(_score(score, place))
    return Pairs(first, second, np.array(gold))


def _sentence(cell: Any, place: str) -> str:
    if not isinstance(cell, str) or not cell.strip():
        raise UserError(f"{place}: a sentence is empty; fill it in or remove the line")
    return cell.strip()


def _score(cell: Any, place: str) -> float:
    if not is_number(cell):
        raise UserError(f"{place}: the score {str(cell).strip()!r} is not a number; correct it")
    return float(cell)
