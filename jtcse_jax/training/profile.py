"""Traces ten training steps in the format of TensorBoard's profile plugin and of Perfetto."""

from typing import Any

import jax

from jtcse_jax.config import Config
from jtcse_jax.user_path import user_path

STEPS = 10
AFTER = 5  # steps before the trace, which compile and warm up
FOLDER = "profile"


class Profile:
    """Traces steps AFTER to AFTER + STEPS of a run, or as many as it has, if the config asks."""

    def __init__(self, config: Config, start: int, stop: int):
        """Takes the run's config and its first and last step."""
        self._folder = user_path(config.workdir) / FOLDER
        self._first = min(start + AFTER, stop - 1)
        self._last = min(self._first + STEPS, stop)
        self._asked = config.profile
        self.step(start, None)

    def step(self, done: int, state: Any) -> bool:
        """Call it after each dispatch, with the number of steps done and the resulting state.

        Returns True if it waited for the steps, to start the trace or to write it.
        """
        if not self._asked or done not in (self._first, self._last):
            return False
        jax.block_until_ready(state)
        if done == self._first:
            jax.profiler.start_trace(self._folder)
        else:
            jax.profiler.stop_trace()
        return True
