import os
import subprocess
import sys

import jax
import pytest
from processes import ROOT, STEERING, free_port

from jtcse_jax.errors import UserError
from jtcse_jax.runtime import distributed
from jtcse_jax.runtime.distributed import initialize


@pytest.fixture
def calls(monkeypatch):
    """An environment that declares nothing, and what would be asked of jax."""
    for name in list(os.environ):
        if name.startswith(STEERING):
            monkeypatch.delenv(name)
    asked: list[dict] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.append(given))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(distributed, "_fail_together", lambda: None)
    return asked


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "4"}
SLURM_SHARED = {**SLURM, "SLURM_STEP_NUM_NODES": "2"}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # batch script, no srun
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},  # interactive step
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {**SLURM, "JAX_NUM_PROCESSES": "1"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},  # but jax found no chips
    ],
)
def test_one_process_joins_nothing(calls, monkeypatch, environment):
    declare(monkeypatch, environment)
    initialize()
    assert calls == []


@pytest.mark.parametrize(
    "environment, devices",
    [
        (SLURM, []),
        (SLURM_SHARED, None),
        ({**SLURM_SHARED, "CUDA_VISIBLE_DEVICES": "0"}, []),
        ({**SLURM_SHARED, "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({**SLURM, "JAX_LOCAL_DEVICE_IDS": "0"}, None),
    ],
)
def test_slurm_step(calls, monkeypatch, environment, devices):
    declare(monkeypatch, environment)
    initialize(timeout=9)
    assert calls == [
        {
            "cluster_detection_method": "slurm",
            "num_processes": 4,
            "local_device_ids": devices,
            "initialization_timeout": 18,
        }
    ]


def test_mpirun_inside_slurm_is_open_mpi(calls, monkeypatch):
    declare(monkeypatch, {**SLURM, **MPI})
    initialize()
    assert calls[0]["cluster_detection_method"] == "ompi"
    assert calls[0]["local_device_ids"] == []


def test_explicit_cluster_wins(calls, monkeypatch):
    declare(monkeypatch, {**SLURM, **EXPLICIT})
    initialize(timeout=9)
    assert calls == [
        {
            "coordinator_address": "10.0.0.1:1234",
            "num_processes": 4,
            "process_id": 3,
            "cluster_detection_method": "deactivate",
            "initialization_timeout": 18,
        }
    ]


@pytest.mark.parametrize(
    "environment, joins",
    [
        ({}, True),  # a TPU VM: the metadata server knows
        ({"TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_PROCESS_ADDRESSES_PATH": "/etc/tpu", "TPU_SKIP_MDS_QUERY": "1"}, True),
    ],
)
def test_tpu_workers(calls, monkeypatch, environment, joins):
    before = jax.config.jax_platforms
    declare(monkeypatch, environment)
    jax.config.update("jax_platforms", "tpu,cpu")
    try:
        initialize()
    finally:
        jax.config.update("jax_platforms", before)
    assert len(calls) == joins


@pytest.mark.parametrize(
    "environment, said",
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID must be set too"),
        ({"JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "no cluster was found"),
        ({**EXPLICIT, "JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID is 'first'"),
    ],
)
def test_incomplete_declaration(calls, monkeypatch, environment, said):
    declare(monkeypatch, environment)
    with pytest.raises(UserError, match=said):
        initialize()
    assert calls == []


def test_failing_to_join_is_fatal(calls, monkeypatch):
    def fail(**_):
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    declare(monkeypatch, SLURM)
    with pytest.raises(UserError, match="cannot join .*RuntimeError: no route to host."):
        initialize()


def test_second_call_does_nothing(calls, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    declare(monkeypatch, SLURM)
    initialize()
    assert calls == []


PROGRAM = """
from jtcse_jax.runtime import distributed
from jtcse_jax.runtime.distributed import initialize
initialize(timeout=60)
import jax, numpy
from jax._src.xla_bridge import CUDA_VISIBLE_DEVICES
from jax.experimental.multihost_utils import process_allgather
ranks = process_allgather(numpy.array([jax.process_index() + 5])).ravel().tolist()
# As one string, or the lines of Gloo could come in between.
print(f"saw {jax.process_count()} {jax.device_count()} {ranks} {CUDA_VISIBLE_DEVICES.value}")
"""


@pytest.mark.parametrize("launcher", ["explicit", "slurm"])
def test_two_real_processes(launcher):
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(STEERING)}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    processes = []
    for rank in ("0", "1"):
        if launcher == "slurm":
            declared = {
                "SLURM_JOB_ID": "7",
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": "2",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_STEP_NUM_NODES": "2",
                "SLURM_PROCID": rank,
                "SLURM_LOCALID": "0",
                "JAX_COORDINATOR_PORT": str(port),
            }
        else:
            declared = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": rank,
            }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                env=environment | declared,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for output in outputs:
        # All of the node's devices stay visible to its one process.
        assert "saw 2 4 [5, 6] all" in output, output


def declare(monkeypatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
