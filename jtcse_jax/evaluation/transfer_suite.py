"""The suite `transfer`: classifiers on frozen sentence vectors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jtcse_jax.evaluation.score_table import Table, missing_tasks, score_table
from jtcse_jax.evaluation.scored_model import Model
from jtcse_jax.evaluation.suite import Options, Scored, Suite, fingerprint, warn_missing
from jtcse_jax.evaluation.transfer import (
    TransferTask,
    check_installed,
    evaluate_transfer,
    load_transfer,
)


@dataclass(frozen=True, kw_only=True)
class TransferOptions(Options):
    """Options of the suite."""

    transfer: str | None = None
    """Folder of MR, CR, SUBJ, MPQA, SST2, TREC and MRPC in SentEval's layout (CR, MPQA, ...)."""


class Transfer:
    """SentEval's transfer tasks."""

    def __init__(self, folder: str, seed: int):
        """Reads the tasks; missing ones are only warned about.

        Raises UserError as `load_transfer`, and if scikit-learn is missing.
        """
        check_installed()
        self.tasks, self.missing = load_transfer(folder)
        self.data = fingerprint(folder, [_labelled(task) for task in self.tasks])
        self.seed = seed
        warn_missing(self.missing)

    def score(self, model: Model) -> dict[str, Any]:
        """As `evaluate_transfer`."""
        result = evaluate_transfer(model.encode, self.tasks, seed=self.seed)
        return result | {"missing": self.missing}


def _headline(result: dict[str, Any]) -> dict[str, float]:
    """Accuracy by task."""
    return result["accuracy"]


def _labelled(task: TransferTask) -> Iterator[str]:
    for split in task.splits:
        yield from (*split.first, *(split.second or ()), *map(str, split.labels.tolist()))


def _with_f1(found: dict[str, Any]) -> dict[str, float]:
    scores = dict(found["accuracy"])
    average = scores.pop("average", None)
    scores |= {f"{task} F1": score for task, score in found.get("f1", {}).items()}
    return scores if average is None else scores | {"average": average}


def _tables(transfer: Sequence[Scored]) -> list[Table]:
    rows = [(name, _with_f1(found)) for name, found in transfer]
    protocols = [found["protocol"] for _, found in transfer]
    return [score_table("Transfer", rows, protocols, missing_tasks(transfer))]


TRANSFER = Suite(
    name="transfer",
    options=TransferOptions,
    data="transfer",
    make=lambda folder, options: Transfer(folder, options.seed),
    headline=_headline,
    required="accuracy",
    tables=_tables,
)
