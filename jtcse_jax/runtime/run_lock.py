"""Ensures that only one run at a time uses a workdir."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from jtcse_jax.errors import InUse, writing
from jtcse_jax.runtime.locks import lock_file

FILE = "run.lock"


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds the workdir's lock; the kernel releases it when this process ends, however it ends.

    The file stays, with the host and process id of its last holder. Raises InUse if another process
    holds the lock, and UserError if the workdir cannot be written.
    """
    path = workdir / FILE
    with writing(f"workdir {workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        # Unbuffered: with a full disk, buffered bytes would be written again at exit, and fail.
        file = path.open("ab+", buffering=0)
    with file:
        if not lock_file(file):
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process"
            raise InUse(
                f"workdir {workdir} is in use by {holder}: wait for it, stop it, or name another "
                "--workdir."
            )
        with writing(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
