"""Ensures that only one run at a time uses a workdir."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from jtcse_jax.errors import InUse, writing
from jtcse_jax.runtime.locks import lock

FILE = "run.lock"


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds the workdir's lock; the system releases it when this process ends, however it ends.

    The file stays, with the host and process id of its last holder. But a failed start leaves
    nothing: a new workdir is removed if an error comes before anything is written there. Raises
    InUse if another process holds the lock, and UserError if the workdir cannot be written.
    """
    path, new = workdir / FILE, not workdir.exists()
    with contextlib.ExitStack() as stack:
        with writing(f"workdir {workdir}"):
            workdir.mkdir(parents=True, exist_ok=True)
            ours = stack.enter_context(lock(path))
        if not ours:
            holder = path.read_text(errors="replace").strip() or "another process"
            raise InUse(
                f"workdir {workdir} is in use by {holder}: wait for it, stop it, or name another "
                "--workdir."
            )
        with writing(path):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        try:
            yield
        except BaseException:
            if new and not any(each.is_file() and each != path for each in workdir.rglob("*")):
                shutil.rmtree(workdir, ignore_errors=True)
            raise
