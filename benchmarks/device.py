"""Prints the device, its memory and driver, and the versions of what uses it.

python -m benchmarks.device --output device.json
"""

import argparse
import importlib.util
import os
import subprocess

import jax

from benchmarks.race import report
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.files import check_replaceable

_NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit",
    "--format=csv,noheader",
)


@one_line_errors
def main() -> None:
    """Prints a table and writes it as JSON, with the versions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    options = parser.parse_args()
    rows = [
        {
            "device": device.device_kind,
            "platform": device.platform,
            "memory GB": (device.memory_stats() or {}).get("bytes_limit", 0) / 1e9 or None,
            "host memory GB": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9,
        }
        for device in jax.local_devices()
    ]
    report("device", rows, options.output, driver=_driver(), torch=_torch())


def _driver() -> str | None:
    """What nvidia-smi tells about each GPU; None if it cannot be run."""
    try:
        return subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _torch() -> str | None:
    """The CUDA version that torch is built for and whether it finds a device; None if absent."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} device(s)"


if __name__ == "__main__":
    main()
