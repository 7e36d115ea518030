"""Handles SIGTERM and Ctrl-C: the run saves after this step and ends."""

import signal
import sys
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """While it is entered, SIGTERM and a first Ctrl-C are recorded and do not end the process.

    With several processes, any of them may get SIGTERM. jax's preemption service then handles it
    and makes all processes agree on a step. Ctrl-C ends them at once.
    """

    _times_asked = 0

    def __enter__(self) -> "StopSignal":
        self._asked = self.by_ctrl_c = False
        self._before = {}
        # Python delivers signals to the main thread only.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._take)
            # In the background of a script the shell has it ignored.
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def asked(self) -> bool:
        """Whether to stop after this step. All processes must ask each time; all get one answer."""
        # Not the step's number: jax needs an increasing one, and the next stage begins at 0 again.
        StopSignal._times_asked += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(StopSignal._times_asked)
        return self._asked

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.by_ctrl_c:
                raise KeyboardInterrupt
            self.by_ctrl_c = True
            print("saving after this step; Ctrl-C again ends at once", file=sys.stderr)
        self._asked = True
