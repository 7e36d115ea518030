"""What of orbax `checkpoint` does otherwise: whom signals are told to, and which step is kept."""

from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp


class Manager(ocp.CheckpointManager):
    """Orbax's, but for the question whether a signal came."""

    def reached_preemption(self, step: int) -> bool:
        """Not orbax's to ask: it would put its steps into the count of `stop_signal`."""
        return False


class KeepStep:
    """Preservation policy: the one step that `choose` names.

    Orbax's own `BestN` wants metrics in orbax's files, where one damaged file stops the opening of
    all checkpoints, and sorts by them even if they are NaN.
    """

    def __init__(self, choose: Callable[[list[int]], int | None]) -> None:
        self._choose = choose

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Orbax asks which of the steps stay."""
        chosen = self._choose([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == chosen for checkpoint in checkpoints]
