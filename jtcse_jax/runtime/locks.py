"""File locks, which the system releases when their process ends, however it ends."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Locks a file, which stays, while the block runs; yields False if another process has it.

    With `wait` it waits, and yields False only if the file was removed meanwhile. If the file
    system has no locks, it logs a warning and yields True. Raises OSError if the file cannot be
    opened.
    """
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = path.exists()
        except BlockingIOError:
            ours = False
        except OSError as error:
            reason = error.strerror or error
            _log.warning("%s cannot be locked (%s): use it from one process only", path, reason)
            ours = True
        yield ours
