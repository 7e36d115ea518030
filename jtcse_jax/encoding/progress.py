"""Progress bars on a terminal and in a notebook, and lines in a log file."""

import sys
import time
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
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
        console=_console(),
        disable=not shown,
        redirect_stdout=sys.stdout.isatty(),
    )
    progress.add_task("encoding", total=total)
    return progress


def step_bar(first: int, total: int, shown: bool = True) -> Progress:
    """A bar for one task, training steps from `first` on, on a terminal or in a notebook.

    There is none if the lines of the training log, on stdout, go elsewhere (`| tee`, a file).
    """
    console = _console()
    visible = console.is_jupyter or (console.is_terminal and sys.stdout.isatty())
    progress = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
        console=console,
        disable=not (shown and visible),
        refresh_per_second=2,
    )
    progress.add_task("training", total=total, completed=first)
    return progress


def _console() -> Console:
    """The console of stderr. A notebook without ipywidgets gets lines, as a log file does."""
    return Console(stderr=True, force_jupyter=None if find_spec("ipywidgets") else False)


class LoggedProgress(Progress):
    """A bar that is also printed every `LOG_EVERY` seconds if the console cannot redraw it."""

    _logged: float | None = None

    def advance(self, *arguments: Any, **options: Any) -> None:
        """As of `Progress`."""
        super().advance(*arguments, **options)
        now = time.monotonic()
        if self._logged is None:
            self._logged = now
        silent = self.disable or self.console.is_terminal or self.console.is_jupyter
        if not silent and now - self._logged >= LOG_EVERY:
            self._logged = now
            self.console.print(self.get_renderable())


class Speed(ProgressColumn):
    """A column of `progress_bar`."""

    def render(self, task: Task) -> Text:
        """Sentences per second, once some are done."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} sentences/s" if speed else "")
