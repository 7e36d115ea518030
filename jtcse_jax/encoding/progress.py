"""The progress bar of commands that encode many sentences."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
)
from rich.text import Text


def progress_bar(total: int | None, shown: bool = True) -> Progress:
    """A bar for one task on stderr: sentences done, sentences per second, time left."""
    progress = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
    progress.add_task("encoding", total=total)
    return progress


class Speed(ProgressColumn):
    """A column of `progress_bar`."""

    def render(self, task: Task) -> Text:
        """Sentences per second, once some are done."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} sentences/s" if speed else "")
