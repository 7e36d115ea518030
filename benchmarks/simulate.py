"""Simulates the time of a training step on many devices: nothing here has run on them.

    python -m benchmarks.simulate --text sentences.txt --devices 8 64 512 --output simulate.json

Two BERT towers are trained with JTCSE, data parallel, on hosts with several devices each. A step
takes

    max(packing, compute + gradients + vectors)

* packing: measured here, as processor time of one thread. The process of one host plans the whole
  batch and fills its own rows, by the trainer's own code.
* compute: the matrix products of `jtcse_jax.training.flops` at `--mfu` of `--peak-tflops`.
* gradients: an all-reduce of 4 bytes per parameter.
* vectors: the transfers of the losses, in units of all sentence vectors, K * 2B * D * 4 bytes: 4.3
  units gathered and 4 reduced, as counted in the compiled step (a test checks these numbers).

Transfers follow NCCL's ring inside each host and between hosts: an all-reduce of S bytes over g
devices per host and H hosts takes 2 (g-1)/g S / device_rate + 2 (H-1)/H S / host_rate, and 2 (g-1 +
H-1) latencies; an all-gather takes half of it. The rates are those of the wire, so these times are
lower bounds. Nothing overlaps with computing, so their sum is an upper bound. The optimizer, the
losses' products, and waiting for the slowest device are left out. `fed` excludes the wait for
packing.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.limits import SIZES
from benchmarks.race import report
from benchmarks.text import add_options, write_text
from benchmarks.train_step import half
from jtcse_jax.config import DataConfig, ModelConfig
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.tokens import TokenCache, tokenize
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.files import check_replaceable
from jtcse_jax.store import hf_tokenizer
from jtcse_jax.training.flops import Work, crossed_layers, forward_flops

TOWERS = 2
GATHERED, REDUCED = 4.3, 4.0  # units of vectors in a step of JTCSE
_MEASURED = 3  # batches packed


class Cluster(NamedTuple):
    """A number of equal hosts."""

    devices: int  #: devices of all hosts
    per_host: int  #: devices of one host
    device_rate: float  #: bytes per second from a device to another one of its host
    host_rate: float  #: bytes per second from a host to other hosts
    latency: float  #: seconds per message

    @property
    def hosts(self) -> int:
        """The number of hosts."""
        return max(1, self.devices // self.per_host)


@one_line_errors
def main() -> None:
    """Simulates, prints a table and writes it as JSON."""
    options = _read_options()
    clusters = [_cluster(options, devices) for devices in options.devices]
    largest = max(options.devices) * options.batch
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = max(options.sentences, 2 * largest)
        text = write_text(options.text, options.tokenizer, folder / "text.txt", count)
        tokenizer = hf_tokenizer.find_tokenizer(options.tokenizer)
        cache = tokenize(open_source(str(text)), tokenizer, options.max_len, folder / "cache")
        rows = [_row(options, cache, cluster) for cluster in clusters]
    fields = {key: value for key, value in vars(options).items() if key != "output"}
    report("simulated, not run; times in ms", rows, options.output, options=fields)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch", type=int, default=64, help="sentences per device")
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--per-host", type=int, default=8, help="devices per host")
    parser.add_argument("--peak-tflops", type=float, default=989, help="H100, bfloat16: data sheet")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak; an assumption")
    parser.add_argument(
        "--device-gb", type=float, default=450, help="GB/s one way; NVLink 4, H100 data sheet"
    )
    parser.add_argument(
        "--host-gb", type=float, default=400, help="GB/s one way; 8 x 400 Gb/s, DGX H100 data sheet"
    )
    parser.add_argument("--latency-us", type=float, default=10, help="per message; an assumption")
    parser.add_argument("--max-len", type=int, default=64)
    parser.add_argument("--sentences", type=int, default=20_000, help="least size of the text")
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    return parser.parse_args()


def _cluster(options: argparse.Namespace, devices: int) -> Cluster:
    per_host = min(devices, options.per_host)
    if devices % per_host:
        raise UserError(f"--devices {devices}: not a multiple of --per-host {per_host}.")
    rates = options.device_gb * 1e9, options.host_gb * 1e9
    return Cluster(devices, per_host, *rates, options.latency_us / 1e6)


def _row(options: argparse.Namespace, cache: TokenCache, cluster: Cluster) -> dict[str, Any]:
    batch = options.batch * cluster.devices
    packing, host_bytes = measure_packing(cache, batch, cluster)
    operations = step_operations(options.size, cache, options.batch)
    compute = operations / (options.peak_tflops * 1e12 * options.mfu)
    gradients = all_reduce(gradient_bytes(options.size), cluster)
    unit = vector_bytes(options.size, batch)
    vectors = all_gather(GATHERED * unit, cluster) + all_reduce(REDUCED * unit, cluster)
    device = compute + gradients + vectors
    step = max(packing, device)
    return {
        "devices": cluster.devices,
        "batch": batch,
        "MB a host": host_bytes / 1e6,
        "packing": packing * 1e3,
        "compute": compute * 1e3,
        "gradients": gradients * 1e3,
        "vectors": vectors * 1e3,
        "step": step * 1e3,
        "busy %": 100 * compute / step,
        "fed, busy %": 100 * compute / device,
        "sentences/s": batch / step,
        "fed, sentences/s": batch / device,
    }


def all_reduce(size: float, cluster: Cluster) -> float:
    """Seconds until every device has the sum of all devices' arrays of `size` bytes."""
    return 2 * all_gather(size, cluster)


def all_gather(size: float, cluster: Cluster) -> float:
    """Seconds until every device has an array of `size` bytes, of which each had a share."""
    inside = (cluster.per_host - 1) / cluster.per_host * size / cluster.device_rate
    between = (cluster.hosts - 1) / cluster.hosts * size / cluster.host_rate
    messages = cluster.per_host - 1 + cluster.hosts - 1
    return inside + between + messages * cluster.latency


def gradient_bytes(size: str) -> int:
    """Bytes of the gradients of all towers, float32."""
    architecture = SIZES[size]
    config = ModelConfig(towers=("scratch",) * TOWERS, cross=half(architecture))
    abstract = Bank.from_config(config, architecture).abstract()
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(abstract))


def vector_bytes(size: str, batch: int) -> int:
    """Bytes of the vectors of all views in all towers, float32."""
    return TOWERS * 2 * batch * SIZES[size].hidden_size * 4


def step_operations(size: str, cache: TokenCache, batch: int) -> float:
    """Operations of one device's share of a step."""
    architecture = SIZES[size]
    lengths = cache.lengths.astype(np.float64)
    views = 2 * batch
    work = Work(views * lengths.mean(), views * (lengths**2).mean(), views)
    crossed = crossed_layers(architecture, half(architecture))
    return 3 * TOWERS * float(forward_flops(architecture, work, crossed_layers=crossed))


def measure_packing(cache: TokenCache, batch: int, cluster: Cluster) -> tuple[float, int]:
    """Processor seconds and bytes of a batch in the process of the first host."""
    batches = PackedBatches(
        cache,
        DataConfig(batch_size=batch),
        seed=0,
        row_multiple=cluster.devices,
        shard=(0, cluster.hosts),
    )
    seconds = []
    for step in range(_MEASURED):
        began = time.thread_time()
        made = batches[step]
        seconds.append(time.thread_time() - began)
    return float(np.median(seconds)), sum(array.nbytes for array in jax.tree.leaves(made))


if __name__ == "__main__":
    main()
