"""What a run writes down: `metrics.jsonl`, TensorBoard, and a line of progress.

Every line of `metrics.jsonl` has the step, and either the means of the training metrics since the
line before, or the scores of an evaluation. A resumed run cuts off what came after its checkpoint;
TensorBoard and Weights & Biases keep it, and show those steps twice.
"""

import json
import time
import uuid
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

from tensorboard.summary import Writer

from jtcse_jax import output
from jtcse_jax.errors import UserError, writing

JSONL, TENSORBOARD = "metrics.jsonl", "tensorboard"
WANDB_ID = "wandb_id.txt"
SPEEDS = ("sentences_per_second", "tokens_per_second", "mfu")  # in a line of training metrics


class MetricsLog:
    """The log of one run; where `write` is False (all processes but one) it only counts."""

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int | None,
        write: bool = True,
        wandb: str | None = None,
        config: dict[str, Any] | None = None,
    ):
        """Goes on in the files of `workdir`, without the lines after `start_step`.

        Args:
          workdir: where they are.
          start_step: of the checkpoint that the run resumes from; None for a new run.
          write: whether this process writes.
          wandb: project of Weights & Biases that gets the same numbers; None for none.
          config: of the run, shown there.
        Raises:
          UserError: wandb is asked for and not installed, or cannot start; a file cannot be
            written.
        """
        self._path = workdir / JSONL
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0
        self._tensorboard = None
        self._wandb = None
        if write:
            if wandb:  # first: it may be refused
                self._wandb = _start_wandb(wandb, workdir, config or {})
            # Without a checkpoint the run begins again and writes the scores of step 0 again.
            keep_until(self._path, -1 if start_step is None else start_step)
            with writing(workdir / TENSORBOARD):
                self._tensorboard = Writer(str(workdir / TENSORBOARD))

    def add(self, metrics: dict[str, float]) -> None:
        """Takes the metrics of one step."""
        for name, value in metrics.items():
            self._sums[name] += value
        self._count += 1

    @property
    def unwritten(self) -> int:
        """Steps since the last flush."""
        return self._count

    def flush(self, step: int, **more: float) -> dict[str, float]:
        """Writes and returns the means since the last flush, with `more` beside them."""
        means = {name: total / self._count for name, total in self._sums.items()} | more
        self._sums.clear()
        self._count = 0
        self.write(step, means)
        return means

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes one line of numbers."""
        if self._tensorboard is None:
            return
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        with writing(self._path.parent / TENSORBOARD):
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log({"step": step, **metrics})

    def close(self) -> None:
        """Ends the TensorBoard file and the run of Weights & Biases."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(project: str, workdir: Path, config: dict[str, Any]) -> Any:
    """The workdir's run of Weights & Biases, begun or gone on with."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"wandb = {project} needs the package wandb: pip install wandb") from error
    path = workdir / WANDB_ID
    if not path.is_file():
        output.replace(path, uuid.uuid4().hex + "\n")
    try:
        run = wandb.init(
            project=project,
            id=path.read_text(encoding="utf-8").strip(),
            resume="allow",
            name=workdir.name,
            dir=str(workdir),
            config=config,
        )
    except Exception as error:  # its own types, for a missing login above all
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"wandb = {project}: Weights & Biases cannot start ({reason}): log in with `wandb "
            "login`, or set WANDB_MODE=offline."
        ) from error
    # Our own count: theirs must not go back, and a resumed run does.
    run.define_metric("*", step_metric="step")
    return run


class Speed:
    """How much is done a second, and the time left, over the last 100 steps of training alone.

    Not over all steps: a second shape that compiles in the middle of a run takes as long as a
    thousand of its steps.
    """

    def __init__(self, steps_left: int):
        self._steps_left = steps_left
        self._last: deque[tuple[float, dict[str, float]]] = deque(maxlen=100)  # seconds, done
        self._since: float | None = None

    def step(self, **done: float) -> None:
        """A step has ended, with so much done of each name.

        The first after a pause only starts the clock (it may compile).
        """
        now = time.perf_counter()
        self._steps_left -= 1
        if self._since is not None:
            self._last.append((now - self._since, done))
        self._since = now

    def pause(self) -> None:
        """What follows (an evaluation, a checkpoint) is no training."""
        self._since = None

    def per_second(self, name: str) -> float:
        """Of that name; 0 before two steps."""
        seconds = self._seconds()
        return sum(done[name] for _, done in self._last) / seconds if seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """For the remaining steps at that speed."""
        seconds = self._seconds()
        return self._steps_left * seconds / len(self._last) if self._last else float("nan")

    def _seconds(self) -> float:
        return sum(seconds for seconds, _ in self._last)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of such a file, [] if there is none; a line cut short by a kill is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def keep_until(path: Path, step: int) -> None:
    """Drops the lines after `step`, which a resumed run will write again."""
    if not path.is_file():
        return
    kept = [json.dumps(line) + "\n" for line in read_jsonl(path) if line["step"] <= step]
    temporary = path.with_suffix(".new")
    with writing(path):
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)
