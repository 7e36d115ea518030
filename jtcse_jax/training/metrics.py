"""Writes a run's metrics to `metrics.jsonl` and TensorBoard, and measures its speed.

Every line of `metrics.jsonl` has the step, and either the means of the training metrics since the
previous line, or the scores of an evaluation. A resumed run deletes the lines after its checkpoint;
TensorBoard and Weights & Biases keep them and show those steps twice.
"""

import json
import time
import uuid
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

from tensorboard.summary import Writer

from jtcse_jax.errors import UserError, writing
from jtcse_jax.runtime import files
from jtcse_jax.store.workdir import METRICS

TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_id.txt"
SPEEDS = ("sentences_per_second", "tokens_per_second", "mfu")  # names in lines of training metrics


class MetricsLog:
    """The log of one run; if `write` is False (on all processes but one) it only counts steps."""

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int | None,
        write: bool = True,
        wandb: str | None = None,
        config: dict[str, Any] | None = None,
    ):
        """Opens the files of `workdir` to append to, and deletes the lines after `start_step`.

        Args:
          workdir: folder of the run.
          start_step: step of the checkpoint that the run resumes from; None for a new run.
          write: whether this process writes.
          wandb: project of Weights & Biases that gets the same numbers, or None.
          config: config of the run, shown there.
        Raises:
          UserError: wandb is requested but not installed or cannot start, or a file cannot be
            written.
        """
        self._path = workdir / METRICS
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0
        self._tensorboard = None
        self._wandb = None
        if write:
            if wandb:  # first, because it may fail
                self._wandb = _start_wandb(wandb, workdir, config or {})
            # A run without a checkpoint starts again, and writes the scores of step 0 again.
            keep_until(self._path, -1 if start_step is None else start_step)
            with writing(workdir / TENSORBOARD):
                self._tensorboard = Writer(str(workdir / TENSORBOARD))

    def add(self, metrics: dict[str, float]) -> None:
        """Adds the metrics of one step."""
        for name, value in metrics.items():
            self._sums[name] += value
        self._count += 1

    @property
    def unwritten(self) -> int:
        """Steps since the last flush."""
        return self._count

    def flush(self, step: int, **more: float) -> dict[str, float]:
        """Writes and returns the means since the last flush, together with `more`."""
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
    """Starts the workdir's run of Weights & Biases, or resumes it."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]  # may be absent
    except ImportError as error:
        raise UserError(f"wandb = {project} needs the package wandb: pip install wandb") from error
    path = workdir / WANDB_ID
    if not path.is_file():
        files.replace(path, uuid.uuid4().hex + "\n")
    try:
        run = wandb.init(
            project=project,
            id=path.read_text(encoding="utf-8").strip(),
            resume="allow",
            name=workdir.name,
            dir=str(workdir),
            config=config,
        )
    except Exception as error:  # its own types, most often for a missing login
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"wandb = {project}: Weights & Biases cannot start ({reason}): log in with `wandb "
            "login`, or set WANDB_MODE=offline."
        ) from error
    # wandb's own step must not decrease, but the step of a resumed run does.
    run.define_metric("*", step_metric="step")
    return run


class Speed:
    """Work per second, and the time left, measured over the last 100 training steps.

    An average over the whole run would mislead: a second shape that compiles in the middle of a run
    takes as long as a thousand steps.
    """

    def __init__(self, steps_left: int):
        self._steps_left = steps_left
        self._last: deque[tuple[float, dict[str, float]]] = deque(maxlen=100)  # seconds, done
        self._since: float | None = None

    def step(self, **done: float) -> None:
        """Records the end of a step and the amount of work it did, by name.

        The first step after a pause only starts the clock, because it may compile.
        """
        now = time.perf_counter()
        self._steps_left -= 1
        if self._since is not None:
            self._last.append((now - self._since, done))
        self._since = now

    def pause(self) -> None:
        """Stops the clock: what follows (an evaluation, a checkpoint) is not training."""
        self._since = None

    def per_second(self, name: str) -> float:
        """Amount of work `name` per second; 0 before two steps."""
        seconds = self._seconds()
        return sum(done[name] for _, done in self._last) / seconds if seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds for the remaining steps at the measured speed; NaN before two steps."""
        seconds = self._seconds()
        return self._steps_left * seconds / len(self._last) if self._last else float("nan")

    def _seconds(self) -> float:
        return sum(seconds for seconds, _ in self._last)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file, [] if it does not exist; incomplete lines are left out."""
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
    """Deletes the lines after `step`, which a resumed run will write again."""
    if not path.is_file():
        return
    kept = [json.dumps(line) + "\n" for line in read_jsonl(path) if line["step"] <= step]
    temporary = path.with_suffix(".new")
    with writing(path):
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)
