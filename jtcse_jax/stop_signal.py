"""SIGTERM as a request: save after this step, and end so that a launcher starts the run again."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """While it is entered, SIGTERM is taken note of and does not end the process.

    Of several processes any may get the signal; jax's preemption service, which takes it there,
    lets all of them agree on a step.
    """

    _times_asked = 0

    def __enter__(self) -> "StopSignal":
        self._asked = False
        self._before: Any = None
        # Python hands signals to the main thread alone.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def asked(self) -> bool:
        """Whether to stop after this step; every process asks after each, and gets the same."""
        # Not the step's own number: jax's must go up, and a pipeline's next stage begins at 0.
        StopSignal._times_asked += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(StopSignal._times_asked)
        return self._asked

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
