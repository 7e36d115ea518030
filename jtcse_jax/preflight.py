"""`python -m jtcse_jax.preflight [--workdir W]`: checks the machines for a run, in ten seconds."""

import dataclasses
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from jtcse_jax.config import Config
from jtcse_jax.errors import UserError
from jtcse_jax.runtime import distributed
from jtcse_jax.runtime.command import command
from jtcse_jax.runtime.environment import environment
from jtcse_jax.runtime.failure import end_at_once
from jtcse_jax.user_path import user_path

MIB = 2**20
REDUCED = 16 * MIB  # bytes that each device adds to the all-reduce
REPEATS = 3  # a constant, because all processes must repeat equally often
BLOCK, MOST_WRITTEN, DISK_SECONDS = 4 * MIB, 128 * MIB, 2.0
JOINING, REDUCING, WRITING = 60, 60, 30  # seconds allowed for the other processes and the disk


@dataclass(frozen=True)
class Arguments:
    """Checks processes, devices, memory, interconnect and the disk of the workdir.

    Start it like the training, with as many processes. Of the trainer's arguments it takes only the
    workdir. Status 0 means that all is well; otherwise one sentence says what is wrong.
    """

    workdir: str = "runs"
    """Folder that a run will write to; if it does not exist it is not created."""


@dataclass(frozen=True)
class Report:
    """Results of one process; sizes in bytes, rates in bytes per second, 0 if unknown."""

    host: str
    devices: str
    device_memory: int
    memory: int
    free: int = 0
    write: float = 0
    read: float = 0
    reduced: float = 0
    problem: str = ""


def preflight(workdir: str) -> list[Report]:
    """Returns the reports of all processes, the same list on every process.

    Every process of the cluster must call it. A problem is in the report of the process that has
    it; UserError is raised only if `workdir` is a URL.
    """
    folder = user_path(Config(workdir=workdir).workdir).absolute()
    mine = jax.local_devices()
    memories = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in mine]
    report = Report(
        host=socket.gethostname(),
        devices=f"{len(mine)} x {mine[0].device_kind}",
        device_memory=sum(memories),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )
    others = "the others: check that their network and devices work, and that none has ended"
    with _deadline(REDUCING, others):
        report = dataclasses.replace(report, **_all_reduce())
    if not report.problem:
        with _deadline(WRITING, f"the disk of the workdir {folder}: check that disk"):
            report = dataclasses.replace(report, **_disk(folder))
    with _deadline(WRITING + REDUCING, others):
        reports = _gather(report)
        if len(reports) > 1 and not any(report.problem for report in reports):
            try:
                distributed.check_shared(_nearest_folder(folder))
            except UserError as error:
                report = dataclasses.replace(report, problem=str(error))
            reports = _gather(report)
    return reports


def print_table(reports: list[Report], seconds: float) -> None:
    """Prints versions, one row per process, and the interconnect's rate."""
    versions = environment()
    table = Table(title=f"jax {versions['jax']}, {versions['devices']}", box=SIMPLE_HEAD)
    table.add_column("process", justify="right")
    for name in ("host", "devices"):
        table.add_column(name, overflow="fold")
    for name in ("device GB", "memory GB", "free GB", "write MB/s", "read MB/s"):
        table.add_column(name, justify="right")
    for number, one in enumerate(reports):
        sizes = (f"{size / 1e9:.1f}" for size in (one.device_memory, one.memory, one.free))
        rates = (f"{rate / 1e6:,.0f}" for rate in (one.write, one.read))
        table.add_row(str(number), Text(one.host), Text(one.devices), *sizes, *rates)
    rich.print(table)
    slowest = min(one.reduced for one in reports)
    if jax.device_count() > 1 and slowest:
        rate = f"{slowest / 1e9:.2f} GB/s per device, measured like the bus bandwidth of nccl-tests"
        print(f"all-reduce of {REDUCED // MIB} MiB over {jax.device_count()} devices: {rate}")
    print(f"checked in {seconds:.1f} s")


@contextmanager
def _deadline(seconds: float, what: str) -> Iterator[None]:
    """Ends the process if the body takes longer: a collective cannot be interrupted."""

    def give_up() -> None:
        waiting = f"process {jax.process_index()} on {socket.gethostname()} waited {seconds:g} s"
        end_at_once(UserError(f"{waiting} for {what}."))

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _all_reduce() -> dict[str, float | str]:
    """Adds arrays of all devices over the interconnect; returns the rate, or the problem."""
    devices = jax.devices()
    mesh = Mesh(np.array(devices), "all")
    elements = np.arange(REDUCED // 4, dtype=np.uint32)

    def addend(index: Any) -> np.ndarray:  # a tuple of slices; jax also types None
        return (elements + np.uint32(index[0].start or 0))[None]

    addends = jax.make_array_from_callback(
        (len(devices), len(elements)), NamedSharding(mesh, PartitionSpec("all")), addend
    )

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec("all"), out_specs=PartitionSpec())
    def add(block: jax.Array) -> jax.Array:
        return jax.lax.psum(block[0], "all")

    sums = add(addends).block_until_ready()
    start = time.monotonic()
    for _ in range(REPEATS):
        sums = add(addends).block_until_ready()
    seconds = (time.monotonic() - start) / REPEATS
    count = len(devices)
    # Unsigned integers wrap around in the same way on every device.
    expected = elements * np.uint32(count) + np.uint32(count * (count - 1) // 2)
    for shard in sums.addressable_shards:
        if not np.array_equal(np.asarray(shard.data), expected):
            return {
                "problem": f"an all-reduce over all devices gave a wrong sum on {shard.device}: "
                "start without its host, and have that host checked"
            }
    return {"reduced": 2 * (count - 1) / count * REDUCED / seconds}


def _disk(workdir: Path) -> dict[str, float | str]:
    """Free space, and the rates of writing, syncing and reading a file, or the error."""
    try:
        folder = _nearest_folder(workdir)
        free = shutil.disk_usage(folder).free
        # A file without a name disappears with the process, however that ends.
        with tempfile.TemporaryFile(dir=folder) as file:
            return {"free": free, **_write_and_read(file)}
    except OSError as error:
        return {
            "problem": f"the workdir {workdir} cannot be written ({error.strerror}): free some "
            "space or get permission to write there, or choose another"
        }


def _nearest_folder(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


def _write_and_read(file) -> dict[str, float | str]:
    block = os.urandom(BLOCK)
    blocks = 0
    start = time.monotonic()
    while blocks * BLOCK < MOST_WRITTEN and time.monotonic() - start < DISK_SECONDS:
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
        blocks += 1
    written = time.monotonic()
    if hasattr(os, "posix_fadvise"):  # drop the cache, so that the disk is read
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file.seek(0)
    same = all(file.read(BLOCK) == block for _ in range(blocks))
    read = time.monotonic()
    if not same:
        return {
            "problem": "the workdir's disk returned other bytes than were written: choose a "
            "workdir on another disk"
        }
    size = blocks * BLOCK
    return {"write": size / (written - start), "read": size / (read - written)}


def _gather(report: Report) -> list[Report]:
    """The reports of all processes, in their order."""
    encoded = json.dumps(dataclasses.asdict(report)).encode()
    size = int(np.max(multihost_utils.process_allgather(np.int32(len(encoded)))))
    padded = np.frombuffer(encoded.ljust(size), np.uint8)
    rows = np.reshape(multihost_utils.process_allgather(padded), (-1, size))
    return [Report(**json.loads(row.tobytes())) for row in rows]


def check(arguments: Arguments) -> None:
    """Prints what `preflight` returns; UserError if a process reports a problem."""
    start = time.monotonic()
    distributed.initialize(timeout=JOINING)
    reports = preflight(arguments.workdir)
    if jax.process_index() == 0:
        print_table(reports, time.monotonic() - start)
    # Wait until the table is printed: the first process that fails ends the others.
    multihost_utils.sync_global_devices("the table is printed")
    for number, report in enumerate(reports):
        if report.problem:
            raise UserError(f"process {number} on {report.host}: {report.problem}.")


main = command("preflight", Arguments, check)


if __name__ == "__main__":
    main()
