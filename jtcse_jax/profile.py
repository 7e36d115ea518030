"""A trace of ten training steps, in the format of TensorBoard's profile plugin and of Perfetto."""

from typing import Any

import jax

from jtcse_jax.config import Config
from jtcse_jax.user_path import user_path

STEPS = 10
AFTER = 5  # steps that compile and warm up come first
FOLDER = "profile"


class Profile:
    """Traces steps AFTER to AFTER + STEPS of a run, or what it has of them, if asked to."""

    def __init__(self, config: Config, start: int, stop: int):
        """`config.profile` asks; the run goes from step `start` to `stop`."""
        self._folder = user_path(config.workdir) / FOLDER
        self._first = min(start + AFTER, stop - 1)
        self._last = min(self._first + STEPS, stop)
        self._asked = config.profile
        self.step(start, None)

    def step(self, done: int, state: Any) -> bool:
        """To be called after each dispatch, with the steps done and the state they will give.

        True where it waited for them, to start or to write the trace.
        """
        if not self._asked or done not in (self._first, self._last):
            return False
        jax.block_until_ready(state)
        if done == self._first:
            jax.profiler.start_trace(self._folder)
        else:
            jax.profiler.stop_trace()
        return True
