"""One run in a workdir at a time."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from jtcse_jax.errors import InUse, writing
from jtcse_jax.locks import lock_file

FILE = "run.lock"

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds the workdir's lock; the kernel releases it when this process ends, however it ends.

    The file stays, with the host and the process id of its last holder. Where the file system has
    no locks, it says so and goes on. Raises InUse where another process holds it, UserError where
    the workdir cannot be written.
    """
    path = workdir / FILE
    with writing(f"workdir {workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        try:
            ours = lock_file(file)
        except OSError as error:
            log.warning("%s cannot be locked (%s): start one run in it alone", path, error.strerror)
            ours = True
        if not ours:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InUse(
                f"workdir {workdir} is in use by {holder}: wait for it, stop it, or name another "
                "--workdir."
            )
        with writing(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
