"""Devices that need not be there: their description for the compiler, and what they can do."""

import importlib.util
import os
import re
from dataclasses import dataclass

import jax
from jax.experimental.topologies import get_topology_desc

from jtcse_jax.errors import UserError

INSTALL = "pip install -r requirements-aot.txt"


@dataclass(frozen=True)
class Rates:
    """What a device is assumed to reach; for an estimate, not for a claim."""

    bandwidth: float  #: bytes per second of main memory, read and written together
    bfloat16: float  #: operations per second of large products of bfloat16
    float32: float  #: operations per second of products with full float32 precision
    launch: float  #: seconds between the end of one launch and the start of the next
    basis: str  #: where the numbers come from


@dataclass(frozen=True)
class Target:
    """Absent devices of one kind."""

    name: str  #: as on the command line
    platform: str  #: cuda or tpu
    devices: list[jax.Device]
    rates: Rates


def find_target(name: str, count: int | None = None) -> Target:
    """The target `h100`, `h200`, `a100`, or a TPU topology such as `v5e:2x4`.

    Args:
      name: what to compile for.
      count: number of devices; by default one GPU, or all chips of the topology.
    Raises:
      UserError: the name is unknown, its compiler is not installed, or there are fewer devices.
    """
    if count is not None and count < 1:
        raise UserError(f"--devices {count}: use at least 1.")
    if name in _GPUS:
        _need("cuda", name, "the CUDA compiler")
        return Target(name, "cuda", _gpus(name, count or 1), _GPUS[name].rates)
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if not match or match[1] not in _TPUS:
        known = ", ".join([*_GPUS, *(f"{kind}:AxB" for kind in _TPUS)])
        raise UserError(f"--target {name} is unknown: choose one of {known} (for example v5e:2x4).")
    _need("tpu", name, "the TPU compiler")
    devices = _tpus(name)
    if count is not None and count > len(devices):
        raise UserError(f"--devices {count}: {name} has only {len(devices)}; name a larger one.")
    return Target(name, "tpu", devices[:count], _TPUS[match[1]])


def is_installed(platform: str) -> bool:
    """Whether the compiler of `cuda` or `tpu` is installed."""
    modules = {"cuda": ("jax_cuda13_plugin", "jax_cuda12_plugin"), "tpu": ("libtpu",)}[platform]
    return any(importlib.util.find_spec(module) is not None for module in modules)


def _need(platform: str, target: str, what: str) -> None:
    if not is_installed(platform):
        raise UserError(f"--target {target} needs {what}, which is not installed: {INSTALL}.")


@dataclass(frozen=True)
class _Gpu:
    """A GPU as XLA describes one: the facts on which its compiler decides."""

    full_name: str
    rates: Rates
    capability: int  # major number of the compute capability
    cores: int
    lanes: int  # float32 units per core
    clock_ghz: float
    memory: int
    peak_bandwidth: int
    cache: int
    shared_per_core: int
    shared_per_block: int

    def description(self) -> str:
        """XLA's text form of a device: stream_executor.GpuTargetConfigProto."""
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {self.shared_per_block}
  shared_memory_per_core: {self.shared_per_core}
  core_count: {self.cores}
  fpus_per_core: {self.lanes}
  clock_rate_ghz: {self.clock_ghz}
  l2_cache_size: {self.cache}
  memory_bandwidth: {self.peak_bandwidth}
  device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {self.capability} }}
}}
runtime_version {{ major: 13 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 19 }}
device_description_str: "{self.full_name}"
"""


_HOPPER = {
    "capability": 9,
    "cores": 132,
    "lanes": 128,
    "clock_ghz": 1.98,
    "cache": 50 * 2**20,
    "shared_per_core": 228 * 2**10,
    "shared_per_block": 227 * 2**10,
}
_DATA_SHEET = "data sheet: 90 % of the bandwidth, 80 % of the products"
_GPUS = {
    "h100": _Gpu(
        "NVIDIA H100 80GB HBM3",
        Rates(3.02e12, 785e12, 50e12, 2e-6, "products measured on an H200, 90 % of 3.35 TB/s"),
        memory=84_929_347_584,
        peak_bandwidth=3_352_320_000_000,
        **_HOPPER,
    ),
    "h200": _Gpu(
        "NVIDIA H200",
        Rates(3.49e12, 785e12, 50e12, 2e-6, "products and copy as measured on an H200"),
        memory=151_397_597_184,
        peak_bandwidth=4_800_000_000_000,
        **_HOPPER,
    ),
    "a100": _Gpu(
        "NVIDIA A100-SXM4-80GB",
        Rates(1.84e12, 250e12, 15.6e12, 2e-6, _DATA_SHEET),
        capability=8,
        cores=108,
        lanes=64,
        clock_ghz=1.41,
        memory=85_100_068_864,
        peak_bandwidth=2_039_040_000_000,
        cache=40 * 2**20,
        shared_per_core=164 * 2**10,
        shared_per_block=163 * 2**10,
    ),
}

# A product of full float32 precision takes six of bfloat16.
_TPUS = {
    "v4": Rates(1.11e12, 220e12, 36.7e12, 5e-7, _DATA_SHEET),
    "v5e": Rates(0.737e12, 158e12, 26.3e12, 5e-7, _DATA_SHEET),
    "v5p": Rates(2.49e12, 367e12, 61.2e12, 5e-7, _DATA_SHEET),
    "v6e": Rates(1.48e12, 734e12, 122e12, 5e-7, _DATA_SHEET),
}


def _gpus(name: str, count: int) -> list[jax.Device]:
    topology = get_topology_desc(
        name, "cuda", target_config=_GPUS[name].description(), topology=f"1x1x{count}"
    )
    return list(topology.devices)


def _tpus(name: str) -> list[jax.Device]:
    # Otherwise libtpu asks a metadata server which machine this is, and waits for the answer.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    try:
        return list(get_topology_desc(name, "tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--target {name}: {str(error).splitlines()[0]}") from error
