"""Handles SIGTERM: the run saves after this step and ends; a launcher may start it again."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """While it is entered, SIGTERM is recorded and does not end the process.

    With several processes, any of them may get the signal. jax's preemption service then handles it
    and makes all processes agree on a step.
    """

    _times_asked = 0

    def __enter__(self) -> "StopSignal":
        self._asked = False
        self._before: Any = None
        # Python delivers signals to the main thread only.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def asked(self) -> bool:
        """Whether to stop after this step. All processes must ask each time; all get one answer."""
        # Not the step's number: jax needs an increasing one, and the next stage begins at 0 again.
        StopSignal._times_asked += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(StopSignal._times_asked)
        return self._asked

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
