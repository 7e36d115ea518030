"""Joins the processes of a declared cluster and makes all of them end if one fails."""

import atexit
import hashlib
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # jax has no public way to its client
from jax.experimental import multihost_utils

from jtcse_jax.errors import Hung, UserError, writing
from jtcse_jax.runtime.failure import end_at_once, share_failures

_FAILED = "jtcse_jax/failed"
_LOOK_SECONDS = 1
_READING_SECONDS = 3  # time for every other process to read the failure
_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(*, timeout: int = 300) -> None:
    """Starts `jax.distributed` if the environment declares several processes; else does nothing.

    Call it before anything uses a device. The first match declares a cluster:

    * `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` with `JAX_COORDINATOR_ADDRESS` (host:port of process
      0): any launcher. `JAX_NUM_PROCESSES=1` runs one process alone inside a cluster.
    * Open MPI: more than one rank.
    * Slurm: a step (`srun`) with more than one task.
    * Cloud TPU: a TPU VM on which jax finds its chips; jax asks the machine for the other workers.

    jax itself reads the last three. A process that is alone on its node takes all of the node's
    devices; if several share a node, each takes the device of its local rank.
    `JAX_LOCAL_DEVICE_IDS=0,1` overrides this.

    From then on the first process with an error prints it, and all others end with its status.

    Args:
        timeout: seconds to wait for the other processes; after that this one ends with status 75.

    Raises:
        UserError: the declaration is incomplete, or this process cannot join the cluster. If each
            process continued alone, they would train unrelated models.
    """
    arguments = _declared_cluster()
    if arguments is None or jax.distributed.is_initialized():
        return
    # If the other processes do not come, jax aborts this one in a way that no handler sees.
    alarm = threading.Timer(timeout, _end_alone, [timeout])
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=2 * timeout)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"cannot join the cluster that the environment declares ({reason}): start all of "
            f"its processes and make sure that they reach process 0, or declare it with "
            f"{', '.join(_EXPLICIT)}; JAX_NUM_PROCESSES=1 runs this process alone"
        ) from error
    finally:
        alarm.cancel()
    _fail_together()


def _end_alone(timeout: int) -> None:
    end_at_once(
        Hung(
            f"the other processes of the declared cluster did not start within {timeout} s: "
            "start all of them, and make sure that they reach process 0"
        )
    )


def _fail_together() -> None:
    ended = threading.Event()
    watch = threading.Thread(target=_end_with_the_first, args=[ended], daemon=True)
    watch.start()
    # If a thread is inside jax's client when the interpreter ends, the process aborts.
    atexit.register(lambda: (ended.set(), watch.join()))
    share_failures(_notify_others)


def _notify_others(status: int) -> int | None:
    """Notifies the other processes that this one failed; returns the status of an earlier failure.

    Returns None if there was none, or if process 0 is gone and nobody can be notified.
    """
    first = None
    try:
        _client().key_value_set(_FAILED, f"{global_state.process_id} {status}")
    except jax.errors.JaxRuntimeError:
        failure = _first_failure()
        if failure is None:
            return None
        _, first = failure
    _let_others_read()
    return first


def _client() -> Any:
    """jax's client; it exists once this process has joined the cluster."""
    return global_state.client


def _first_failure() -> tuple[int, int] | None:
    """The process that failed first and its status; None if none failed or process 0 is gone."""
    try:
        process, status = _client().key_value_try_get(_FAILED).split()
    except jax.errors.JaxRuntimeError:
        return None
    return int(process), int(status)


def _end_with_the_first(ended: threading.Event) -> None:
    """In a thread, watches for failed processes: the main thread may hang in a collective."""
    while not ended.wait(_LOOK_SECONDS):
        failure = _first_failure()
        if failure is None:
            continue
        process, status = failure
        if process != global_state.process_id:
            _let_others_read()
            print(f"ended: process {process} failed; see its message", file=sys.stderr)
            sys.stderr.flush()
            os._exit(status)
        return


def _let_others_read() -> None:
    """Process 0 holds the message for all others, so it ends last."""
    if global_state.process_id == 0:
        time.sleep(_READING_SECONDS)


def check_agreement(**values: object) -> None:
    """Raises UserError if a value differs from process 0's. All processes must call it alike."""
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(repr(value).encode()).digest()[:4] for value in values.values()]
    ours = np.array([int.from_bytes(digest) for digest in digests], np.uint32)
    differs = ours != multihost_utils.broadcast_one_to_all(ours)
    if differs.any():
        names = ", ".join(np.array(list(values))[differs])
        raise UserError(
            f"process {jax.process_index()} on {socket.gethostname()} differs from process 0 in: "
            f"{names}. Start all processes with the same command, on files that all of them share."
        )


def check_shared(folder: Path) -> None:
    """Raises UserError if `folder` is not process 0's folder. All processes must call it alike."""
    if jax.process_count() == 1:
        return
    name = multihost_utils.broadcast_one_to_all(np.frombuffer(os.urandom(8), np.uint8))
    path = folder / f".shared-{name.tobytes().hex()}"
    primary = jax.process_index() == 0
    try:
        if primary:
            with writing(f"workdir {folder}"):
                path.touch()
        multihost_utils.sync_global_devices("the file is there")
        seen = path.exists()
        multihost_utils.sync_global_devices("all have looked")
    finally:
        if primary:
            path.unlink(missing_ok=True)
    if not seen:
        raise UserError(
            f"the workdir {folder} is not the same folder as on process 0: choose one on a file "
            "system that all processes share"
        )


def _declared_cluster() -> dict[str, Any] | None:
    """Arguments for `jax.distributed.initialize`; None if this process runs alone."""
    if "JAX_NUM_PROCESSES" in os.environ or "JAX_PROCESS_ID" in os.environ:
        return _explicit_cluster()
    # Before Slurm: mpirun starts its ranks in a Slurm step whose tasks are nodes, not ranks.
    if _count("OMPI_COMM_WORLD_SIZE") > 1:
        alone = _count("OMPI_COMM_WORLD_LOCAL_SIZE") == 1
        return {
            "cluster_detection_method": "ompi",
            "local_device_ids": _local_device_ids(alone_on_node=alone),
        }
    tasks = _count("SLURM_STEP_NUM_TASKS")
    if tasks > 1:
        alone = tasks == _count("SLURM_STEP_NUM_NODES")
        return {
            "cluster_detection_method": "slurm",
            "num_processes": tasks,
            "local_device_ids": _local_device_ids(alone_on_node=alone),
        }
    if _several_tpu_workers():
        return {}
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        raise UserError(
            "JAX_COORDINATOR_ADDRESS is set but no cluster was found: also set JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID, or unset it to run this process alone"
        )
    return None


def _explicit_cluster() -> dict[str, Any] | None:
    if _count("JAX_NUM_PROCESSES") == 1:
        return None
    missing = [name for name in _EXPLICIT if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must be set too: {', '.join(_EXPLICIT)} go together"
        )
    return {
        "coordinator_address": os.environ["JAX_COORDINATOR_ADDRESS"],
        "num_processes": _count("JAX_NUM_PROCESSES"),
        "process_id": _count("JAX_PROCESS_ID"),
        "cluster_detection_method": "deactivate",
    }


def _local_device_ids(*, alone_on_node: bool) -> list[int] | None:
    """An empty list allows all devices; with None jax takes the device of the local rank.

    By default jax takes one device per process even if there is one process per node. It also asks
    for device 1 if the launcher shows a process only its own device, which is device 0 there.
    """
    if "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    shows_only_its_own = shown != "" and "," not in shown
    return [] if alone_on_node or shows_only_its_own else None


def _several_tpu_workers() -> bool:
    # jax adds tpu to its platforms if it finds chips and libtpu and no platform was chosen.
    # jax adds its options at run time.
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if "tpu" not in (platforms or ""):
        return False
    if "TPU_PROCESS_ADDRESSES_PATH" in os.environ:
        return True
    names = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    workers = next((os.environ[name] for name in names if name in os.environ), None)
    # On Kubernetes the environment names the workers. On a TPU VM jax asks the metadata server,
    # which works for one worker as for many.
    if workers is None:
        return "TPU_SKIP_MDS_QUERY" not in os.environ
    return "," in workers or _count("MEGASCALE_NUM_SLICES") > 1


def _count(name: str) -> int:
    """The whole number in an environment variable; 0 if it is not set."""
    value = os.environ.get(name, "0")
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name} is {value!r}; it must be a whole number") from None


def is_primary() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line, on the primary process only."""
    if is_primary():
        print(line, flush=True)
