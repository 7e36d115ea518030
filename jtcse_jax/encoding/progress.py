"""The progress bar of commands that encode many sentences."""

import time
from typing import Any

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

LOG_EVERY = 60.0  # seconds


def progress_bar(total: int | None, shown: bool = True) -> Progress:
    """A bar for one task on stderr: sentences done, sentences per second, time left.

    In a log file, where rich shows a bar only at its end, these are printed every minute.
    """
    progress = LoggedProgress(
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
    progress.add_task("encoding", total=total)
    return progress


class LoggedProgress(Progress):
    """A bar that is also printed every `LOG_EVERY` seconds if the console cannot redraw it."""

    _logged: float | None = None

    def advance(self, *arguments: Any, **options: Any) -> None:
        """As of `Progress`."""
        super().advance(*arguments, **options)
        now = time.monotonic()
        if self._logged is None:
            self._logged = now
        console = self.console
        redraws = console.is_terminal or console.is_jupyter
        if not (redraws or self.disable) and now - self._logged >= LOG_EVERY:
            self._logged = now
            console.print(self.get_renderable())


class Speed(ProgressColumn):
    """A column of `progress_bar`."""

    def render(self, task: Task) -> Text:
        """Sentences per second, once some are done."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} sentences/s" if speed else "")
