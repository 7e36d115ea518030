"""What a pipeline prints of its progress: the stage, the elapsed time and a rough time to go."""

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

from jtcse_jax.config import Config
from jtcse_jax.runtime.distributed import say
from jtcse_jax.store.ensemble import split_sum


class StageProgress:
    """Announces the stages of a pipeline and, after each, how long all took so far."""

    def __init__(self, configs: Mapping[str, Config], views: Mapping[str, int]):
        """Takes the stages in order.

        Args:
          configs: their configs, as `stage_configs` returns them.
          views: the views of an item in each stage: 1, 2, or more with hard negatives.
        """
        self._configs, self._views = configs, views
        self._began = self._stage_began = time.monotonic()
        self._steps: dict[str, float] = {}  # seconds of all steps, of the stages trained now
        self._others = 0.0  # longest time of such a stage for all else: compiling, evaluation ...

    def begin(self, name: str, *, finished: bool) -> None:
        """Prints which stage follows; `finished` is that of an earlier start."""
        number, count = list(self._configs).index(name) + 1, len(self._configs)
        say(f"--- stage {number} of {count}: {name}{', already finished' * finished}")
        self._stage_began = time.monotonic()

    def end(self, name: str, seconds: float | None, left: Sequence[str]) -> None:
        """Prints the time of a stage that was trained now, and an estimate for the stages `left`.

        `seconds` is the time of all steps. The estimate adds the steps of these stages, at the
        speed of those trained now, and for all else the longest time that one of those took. It is
        left out if a stage has no `max_steps`.
        """
        now = time.monotonic()
        took = now - self._stage_began
        self._steps[name] = min(took, seconds or took)  # a resumed stage had taken some before
        self._others = max(self._others, took - self._steps[name])
        line = f"--- stage {name} took {_time(took)}, the pipeline {_time(now - self._began)}"
        done, rest = self._work(self._steps), self._work(left)
        if left and done and rest:
            estimate = rest / done * sum(self._steps.values()) + len(left) * self._others
            line += f"; about {_time(estimate)} to go"
        say(line)

    def _work(self, names: Iterable[str]) -> int | None:
        """Sentence views times towers of some stages; None if a number of steps is unknown.

        A teacher's towers count like the others: that is what they cost on CPUs.
        """
        total = 0
        for name in names:
            config = self._configs[name]
            if config.max_steps is None:
                return None
            towers = len(config.model.towers) + self._teacher_towers(config)
            total += config.max_steps * config.data.batch_size * self._views[name] * towers
        return total

    def _teacher_towers(self, config: Config) -> int:
        """Towers of the teacher; 1 for a model that is not a stage of the pipeline."""
        if config.objective.teacher is None:
            return 0
        stages = {each.workdir: len(each.model.towers) for each in self._configs.values()}
        return sum(stages.get(model, 1) for _, model in split_sum(config.objective.teacher))


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
