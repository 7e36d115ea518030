"""How `checkpoint` changes orbax: it does not ask about signals, and we choose the kept step."""

from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp


class Manager(ocp.CheckpointManager):
    """Orbax's manager, which here never asks whether a signal came."""

    def reached_preemption(self, step: int) -> bool:
        """Always False: if orbax asked jax, it would disturb the count in `stop_signal`."""
        return False


class KeepStep:
    """Preservation policy: keeps the one step that `choose` returns.

    Orbax's own `BestN` needs metrics in orbax's files. There, one damaged file prevents opening all
    checkpoints, and NaN metrics are sorted like numbers.
    """

    def __init__(self, choose: Callable[[list[int]], int | None]) -> None:
        self._choose = choose

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Tells orbax, for each step, whether to keep it."""
        chosen = self._choose([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == chosen for checkpoint in checkpoints]
