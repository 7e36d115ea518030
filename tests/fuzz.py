"""Damaged and hostile files for everything that reads one: it says `UserError`, or it reads.

    pip install atheris
    PYTHONPATH=. python tests/fuzz.py TARGET [--runs 100000] [-OPTION_OF_LIBFUZZER=VALUE ...]

searches for inputs that end otherwise, guided by the branches they reach; more than 20 seconds for
one input, or 2 GB of memory, are such an end. A TARGET is a name in `fuzz_targets.TARGETS`. The
default test run tries a hundred inputs of each, drawn by hypothesis from the same descriptions.
"""

import argparse
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fuzz_targets import TARGETS, make_check

LONGEST = 1024  # bytes that an input is drawn from
SEEDS = 100


def main() -> None:
    """The command line: atheris, until so many inputs were read."""
    import atheris

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--runs", type=int, default=100_000)
    arguments, options = parser.parse_known_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="fuzz-", dir=shared_memory if shared_memory.is_dir() else None
    ) as folder:
        with atheris.instrument_imports(include=["jtcse_jax"]):
            check = make_check(arguments.target, Path(folder))
        _count(check, arguments, Path(folder))
        seeds = Path(folder) / "seeds"
        seeds.mkdir()
        for number in range(SEEDS):  # short inputs are too little to draw files from
            (seeds / str(number)).write_bytes(random.Random(number).randbytes(LONGEST))
        logging.disable()
        limits = ["-timeout=20", "-rss_limit_mb=2048", f"-max_len={LONGEST}", "-len_control=0"]
        atheris.Setup([sys.argv[0], *limits, *options, str(seeds)], check.hypothesis.fuzz_one_input)
        atheris.Fuzz()


def _count(check: Callable[[], None], arguments: argparse.Namespace, folder: Path) -> None:
    """Ends the process, with one line, when the inner test has run as often as asked for."""
    read, begun, before, runs = check.hypothesis.inner_test, time.monotonic(), _memory(), 0

    def counted(*args, **kwargs) -> None:
        nonlocal runs
        read(*args, **kwargs)
        runs += 1
        if runs == arguments.runs:
            seconds = time.monotonic() - begun
            print(
                f"{arguments.target}: {runs:,} inputs in {seconds:,.0f} s, no finding, "
                f"{before:,} MB at first, {_memory():,} MB at most",
                flush=True,
            )
            shutil.rmtree(folder)
            os._exit(0)

    check.hypothesis.inner_test = counted


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
