"""Training runs in processes of their own, alone and as a cluster on the loopback."""

import os
import random
import socket
import subprocess
import sys
import textwrap
import time
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

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


def start(
    folder: Path,
    fields: str = "",
    *,
    before: str = "",
    joining: str = "",
    log: IO | None = None,
    **environment: str,
) -> subprocess.Popen:
    """A run of `tiny_config(folder, FIELDS)` with one device.

    `before` is code run before it, `joining` code run before jax is set up; `log` takes what it
    says, where nobody will read it at its end.
    """
    program = PROGRAM.format(
        folder=str(folder),
        fields=fields,
        joining=textwrap.indent(joining, "    "),
        before=textwrap.indent(before, "    "),
    )
    return start_python("-c", program, log=log, **environment)


def start_python(*arguments: str, log: IO | None = None, **environment: str) -> subprocess.Popen:
    """Python with one device, and with what the tests' own process sees."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(STEERING)}
    ours = {
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": QUICK_COMPILATION,
        "PYTHONPATH": f"{WITHOUT_TORCH}:{ROOT}:{ROOT / 'tests'}",
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=kept | ours | environment,
        stdout=log or subprocess.PIPE,
        stderr=log or subprocess.PIPE,
        text=True,
    )


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


def end(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str, str]:
    """The exit status, the output and what was said on stderr."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


SAVED = "*[05]0"  # a step that is saved every 50 steps, whichever is there


def wait_for(
    path: Path, pattern: str, process: subprocess.Popen | BaseProcess, seconds: float = 300
) -> None:
    """Returns when a file matches, or the process has ended."""
    deadline = time.monotonic() + seconds
    alive = process.is_alive if isinstance(process, BaseProcess) else lambda: process.poll() is None
    while not any(path.glob(pattern)) and alive():
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
