"""Training runs in processes of their own, alone and as a cluster on the loopback."""

import atexit
import multiprocessing
import os
import random
import runpy
import socket
import sys
import tempfile
import textwrap
import time
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
# Without optimizations, and a program in one piece: in 32, as by default, its compilation is spread
# over many cores, but takes a fifth more processor time.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):  # later ones have this way alone, and no such flag
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
# Prefixes of what declares a cluster or devices.
STEERING = (
    *("JAX_COORDINATOR", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_LOCAL_DEVICE_IDS"),
    *("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "CUDA_VISIBLE", "XLA_FLAGS"),
)
WITHOUT_TORCH = str(ROOT / "tests" / "without_torch")  # a PYTHONPATH

# What `python -m jtcse_jax.train` does, for the config of `runs.tiny_config`.
PROGRAM = """
from pathlib import Path
from runs import tiny_config
from jtcse_jax.config import *
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.command import set_up_jax
from jtcse_jax.training.trainer import train

@one_line_errors
def main():
    config = tiny_config(Path({folder!r}), **dict({fields}))
{joining}
    set_up_jax(config.deterministic)
{before}
    train(config)

if __name__ == "__main__":
    main()
"""


# To import jax and what stands on it takes seconds of processor time: one process does it, and all
# that the tests start are forked from it.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["jtcse_jax.training.stages", "jtcse_jax.encoding.encoder"])
OURS = {
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": f"{WITHOUT_TORCH}:{ROOT}:{ROOT / 'tests'}",
}
STARTED = weakref.WeakSet()


@atexit.register
def kill_all() -> None:
    """Ends what a failed test has left; multiprocessing would send SIGTERM and wait for ever."""
    for process in STARTED:
        process.kill()


class Forked(FORKS.Process):
    """A process that sees `environment` alone, but jax has read its own variables before.

    It does not find torch, as transformers would import it.
    """

    def __init__(self, environment: dict[str, str], **options: Any):
        super().__init__(daemon=True, **options)  # it ends with the tests
        self._environment = environment

    def start(self) -> None:
        # Python 3.11 gives the process that imports its path by the environment alone, and is
        # silent about what it then cannot import.
        with mock.patch.dict(os.environ, OURS):
            super().start()
        STARTED.add(self)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class Python(Forked):
    """A started process that does what `python ARGUMENTS` does, for `-m MODULE` or `-c CODE`.

    What it says is added to the files `out` and `err`.
    """

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str], log: Path | None):
        super().__init__(environment, target=_run_python, args=(arguments, os.getcwd()))
        said = tempfile.TemporaryDirectory(prefix="jtcse-process-")
        self.out, self.err = (log or Path(said.name) / name for name in ("out", "err"))
        self.start()
        self._said = said  # removed with this object

    def run(self) -> None:
        for descriptor, path in ((1, self.out), (2, self.err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        super().run()


def _run_python(arguments: tuple[str, ...], folder: str) -> None:
    os.chdir(folder)
    kind, program, *rest = arguments
    sys.argv = [kind, *rest]
    try:
        if kind == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(program, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def start(
    folder: Path,
    fields: str = "",
    *,
    before: str = "",
    joining: str = "",
    log: Path | None = None,
    **environment: str,
) -> Python:
    """A run of `tiny_config(folder, FIELDS)` with one device.

    `before` is code run before it, `joining` code run before jax is set up; what it says is added
    to `log`, if given.
    """
    program = PROGRAM.format(
        folder=str(folder),
        fields=fields,
        joining=textwrap.indent(joining, "    "),
        before=textwrap.indent(before, "    "),
    )
    return start_python("-c", program, log=log, **environment)


def start_python(*arguments: str, log: Path | None = None, **environment: str) -> Python:
    """Python with one device, and with what the tests' own process sees."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(STEERING)}
    return Python(arguments, kept | OURS | {"XLA_FLAGS": QUICK_COMPILATION} | environment, log)


def start_cluster(count: int, folder: Path, fields: str = "", *, present=None, **code: str):
    """The processes of one run on `count` hosts; of those `present` alone, if given."""
    hosts = declared_cluster(count)
    return [start(folder, fields, **code, **hosts[index]) for index in present or range(count)]


def declared_cluster(count: int) -> list[dict[str, str]]:
    """The environment of each process of a cluster on the loopback."""
    port = free_port()
    return [
        {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        for index in range(count)
    ]


def end(process: Python, timeout: float = 240) -> tuple[int | None, str, str]:
    """The exit status, the output and what was said on stderr."""
    process.join(timeout)
    status = process.exitcode
    process.kill()
    return status, process.out.read_text(), process.err.read_text()


SAVED = "*[05]0"  # a step that is saved every 50 steps, whichever is there


def wait_for(path: Path, pattern: str, process: Python, seconds: float = 300) -> None:
    """Returns when a file matches, or the process has ended."""
    deadline = time.monotonic() + seconds
    while not any(path.glob(pattern)) and process.is_alive():
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"no {pattern} in {path}")
        time.sleep(0.01)


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    # Above the range from which the system hands out ports, so that no other process takes it.
    while True:
        port = random.randint(61440, 65535)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
