"""What a program that calls `train` can hear of a run."""

from jtcse_jax.evaluation.development import DevScore


class Callbacks:
    """Subclass it, override the methods that you need, and give an object of it to `train`.

    They are called on every process, between two steps.
    """

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """A line of training metrics: means over the steps since the last line."""

    def on_evaluation(self, step: int, score: DevScore) -> None:
        """The dev set was scored after `step` steps; 0 is the start."""

    def on_save(self, step: int) -> None:
        """A checkpoint of this step is being written, in the background."""
