"""The suite `sts`: correlations of cosines with human judgements of similarity."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.comparison import Cosines, sts_differences, sts_intervals
from jtcse_jax.evaluation.score_table import Table, missing_tasks, number, score_table
from jtcse_jax.evaluation.scored_model import Model
from jtcse_jax.evaluation.sts import PROTOCOL, StsScore, load_sts, score_sts, sts_cosines
from jtcse_jax.evaluation.suite import (
    Differences,
    Options,
    Scored,
    Suite,
    fingerprint,
    pair_content,
    warn_missing,
)
from jtcse_jax.runtime.files import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StsOptions(Options):
    """Options of the suite."""

    sts: str | None = None
    """Folder of STS12-16, STS-B and SICK-R in SentEval's layout (STS12-en-test, ...), or a file of
    scored pairs: lines `sentence1<TAB>sentence2<TAB>score`, or a table (.csv, .tsv, .jsonl, .json,
    .parquet) with columns of such names."""


class Sts:
    """The seven STS tasks, or the user's own pairs."""

    def __init__(self, path: str, seed: int = 0):
        """Reads the tasks. Errors as `load_sts`; missing tasks are only warned about."""
        self.seed = seed  # of the intervals
        self.tasks, self.missing = load_sts(path)
        self.data = fingerprint(path, [pair_content(task.pairs) for task in self.tasks])
        self._scored: list[Cosines] = []  # one entry per model, in order
        warn_missing(self.missing)

    def score(self, model: Model) -> dict[str, Any]:
        """Correlations by task and by subset, ready for JSON."""
        cosines = sts_cosines(model.encode, self.tasks)
        self._scored.append(cosines)
        scores = score_sts(cosines, self.tasks)
        subsets = {name: _columns(score.subsets) for name, score in scores.items() if score.subsets}
        result = {"protocol": PROTOCOL, **_columns(scores), "subsets": subsets}
        gold = {task.name: task.pairs.gold for task in self.tasks}
        result["interval"] = {
            name: [round(100 * bound, 2) for bound in bounds]
            for name, bounds in sts_intervals(cosines, gold, seed=self.seed).items()
        }
        undefined = [score.undefined for score in scores.values() if score.undefined]
        return result | {"missing": self.missing, "undefined": undefined}

    def differences(self, methods: Sequence[str], seed: int) -> dict[str, Any]:
        """How much higher Spearman is than the first method's, by method and task, ready for JSON.

        `methods` has the method of each scored model, in order.
        """
        seeds: dict[str, list[Cosines]] = {}
        for method, cosines in zip(methods, self._scored, strict=True):
            seeds.setdefault(method, []).append(cosines)
        gold = {task.name: task.pairs.gold for task in self.tasks}
        reference = methods[0]
        return {
            method: {
                task: {part: round(100 * value, 2) for part, value in found._asdict().items()}
                for task, found in sts_differences(
                    cosines, seeds[reference], gold, seed=seed
                ).items()
            }
            for method, cosines in seeds.items()
            if method != reference
        }


def _headline(result: dict[str, Any]) -> dict[str, float]:
    """Spearman by task."""
    return result["spearman"]


def _columns(scores: Mapping[str, StsScore]) -> dict[str, dict[str, float]]:
    return {
        "spearman": {name: round(100 * score.spearman, 2) for name, score in scores.items()},
        "pearson": {name: round(100 * score.pearson, 2) for name, score in scores.items()},
        "pairs": {name: score.pairs for name, score in scores.items()},
    }


def _subsets(sts: Sequence[Scored]) -> Table:
    found = [
        {
            f"{task} {name}": score
            for task, part in result.get("subsets", {}).items()
            for name, score in part["spearman"].items()
        }
        for _, result in sts
    ]
    names = dict.fromkeys(name for scores in found for name in scores)
    rows = [[name, *(number(scores.get(name)) for scores in found)] for name in names]
    columns = ("subset", *(name for name, _ in sts))
    return Table("STS by subset", columns, rows, ("Spearman times 100.",), folded=True)


def _tables(sts: Sequence[Scored]) -> list[Table]:
    rows = [(name, _headline(found)) for name, found in sts]
    undefined = [
        f"{name}: {what}: no correlation is defined; counted as 0."
        for name, found in sts
        for what in found.get("undefined", ())
    ]
    protocols = [found["protocol"] for _, found in sts]
    whole = score_table("STS", rows, protocols, missing_tasks(sts) + undefined)
    parts = [(name, found) for name, found in sts if found.get("subsets")]
    return [whole, _subsets(parts)] if parts else [whole]


def _difference_table(reference: str, differences: Mapping[str, Any]) -> Table:
    tasks = list(dict.fromkeys(task for found in differences.values() for task in found))
    rows = [
        [method, *(_interval(found[task]) if task in found else "" for task in tasks)]
        for method, found in differences.items()
    ]
    note = f"Spearman times 100 minus that of {reference}, with its 95 % bootstrap interval."
    return Table("STS differences", ("model", *tasks), rows, (note,))


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


STS = Suite(
    name="sts",
    options=StsOptions,
    data="sts",
    make=lambda path, options: Sts(path, options.seed),
    headline=_headline,
    required="spearman",
    tables=_tables,
    differences=Differences(Sts.differences, _difference_table),
)


def read_scores(path: str | Path, fingerprint: str | None = None) -> dict[str, Any]:
    """Returns the STS scores of a file written by `evaluate --output`.

    They are those of the model with this `ensemble.fingerprint`, or else of `--model`; then it
    warns. Their conditions are included, paths of models are not. Raises UserError for any other
    file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--scores {path}: no such file; `evaluate --output` writes one.")
    content = read_json(path)
    if isinstance(models := content.get("models"), list):  # of `--compare`
        models = [model for model in models if isinstance(model, dict)] or [content]
        same = [model for model in models if model.get("fingerprint") == fingerprint]
        content = (same or models)[0]
    if fingerprint and content.get("fingerprint", fingerprint) != fingerprint:
        logger.warning(
            "--scores %s has the scores of %s, whose vectors are not those of this model; the "
            "card has them nevertheless.",
            *(path, content.get("model")),
        )
    scores = content.get(STS.name)
    tasks = scores.get("spearman") if isinstance(scores, dict) else None
    if (
        scores is None
        or not isinstance(tasks, dict)
        or not all(isinstance(score, int | float) for score in tasks.values())
    ):
        raise UserError(f"--scores {path} has no STS scores as `evaluate --output` writes them.")
    members = content.get("members", [])
    if not isinstance(members, list) or not all(isinstance(one, dict) for one in members):
        raise UserError(f"--scores {path}: `members` is not as `evaluate --output` writes it.")
    members = [{key: value for key, value in one.items() if key != "model"} for one in members]
    return scores | {"members": members, "environment": content.get("environment", {})}
