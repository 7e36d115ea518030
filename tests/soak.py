"""An hour of kills: a run that is killed again and again ends bit for bit as one that is not.

    python tests/soak.py [--minutes 60] [--seconds-between 120] [--workdir FOLDER]

Both train the same two small towers at the same time; one in one go, the other under SIGKILL (three
of four times) and SIGTERM at random moments, saves included: it saves about every second. The
one in one go saves every few minutes, as real runs do, because TensorStore keeps some 80 kB of each
save (docs/reliability.md). One line at the end; status 1 if the two differ, or the memory of the
one in one go grew by more than 1 % an hour. That memory is in memory.csv, second by second.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from processes import Python, start  # noqa: E402
from runs import largest_difference, saved_params  # noqa: E402

from jtcse_jax.errors import START_AGAIN  # noqa: E402
from jtcse_jax.store.checkpoint import Checkpoints  # noqa: E402
from jtcse_jax.store.workdir import CHECKPOINTS  # noqa: E402

OFTEN, SELDOM = 50, 10_000  # steps between saves; oftener, and the killed one falls far behind
SETTLED = 0.3  # of the time, before memory is looked at: pools and caches have filled by then


def main() -> None:
    """Runs it and prints the line."""
    options = _read_options()
    folder = Path(options.workdir or tempfile.mkdtemp(prefix="soak-"))
    for name in ("whole", "killed"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    memory: list[tuple[float, int]] = []
    whole = run(folder / "whole", SELDOM)
    kills, stops = kill_again_and_again(folder / "killed", options, whole, memory)
    whole.terminate()
    whole.join()
    assert whole.exitcode == START_AGAIN, f"SIGTERM gave status {whole.exitcode}"
    last = 10 + max(newest(folder / name) for name in ("whole", "killed"))
    runs = []
    for name in ("whole", "killed"):
        process = run(folder / name, SELDOM, steps=last)
        process.join()
        assert process.exitcode == 0, f"{name} ended with status {process.exitcode}"
        runs.append(saved_params(folder / name / "run", last))
    np.savetxt(folder / "memory.csv", memory, fmt="%d", delimiter=",", header="seconds,bytes")
    same, hourly = largest_difference(*runs) == 0, growth(memory)
    print(
        f"{kills} kills, {stops} stops by SIGTERM, as many resumes, {last:,} steps, "
        f"{'bit-identical' if same else 'NOT identical'}, memory {hourly:+.2%} an hour"
    )
    sys.exit(not same or hourly > 0.01)


def kill_again_and_again(
    folder: Path,
    options: argparse.Namespace,
    whole: Python,
    memory: list[tuple[float, int]],
) -> tuple[int, int]:
    """Starts and ends the run in `folder`; returns how often it was killed and how often stopped.

    Meanwhile the memory of the process `whole` is noted: (seconds, bytes).
    """
    chance = random.Random(options.seed)
    began = time.monotonic()
    kills = stops = 0
    while (age := time.monotonic() - began) < 60 * options.minutes:
        process = run(folder, OFTEN)
        ends = age + chance.uniform(0, 2) * options.seconds_between
        while (age := time.monotonic() - began) < ends:
            for one in (whole, process):
                assert one.is_alive(), f"a run ended by itself: status {one.exitcode}"
            memory.append((age, taken(whole.pid)))
            time.sleep(min(1, max(ends - age, 0)))
        if chance.random() < 0.25:
            process.terminate()
            process.join()
            # Before its first step nothing is saved, and SIGTERM ends it like any process.
            assert process.exitcode in (START_AGAIN, -signal.SIGTERM), process.exitcode
            stops += 1
        else:
            process.kill()
            process.join()
            kills += 1
    return kills, stops


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seconds-between", type=float, default=120, help="kills, on average")
    parser.add_argument("--workdir", help="by default a temporary folder")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def run(folder: Path, save_every: int, steps: int = 10_000_000) -> Python:
    """The run in `folder`, in a process of its own; by default it ends by a signal alone."""
    often = f"save_every={save_every}, eval_every={max(save_every, 1000)}, log_every=100"
    fields = f"max_steps={steps}, keep=2, {often}"
    return start(folder, fields, log=folder / "log.txt")


def taken(pid: int) -> int:
    """Bytes that a living process has taken for itself, in memory or swapped out.

    Pages of files are left out: the system drops those and reads them again as it likes.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * sum(int(status.split(f"{name}:")[1].split()[0]) for name in ("RssAnon", "VmSwap"))


def growth(memory: list[tuple[float, int]]) -> float:
    """An hour's growth as a share of the mean, by least squares."""
    seconds, size = np.array(memory[int(SETTLED * len(memory)) :], float).T
    return float(np.polyfit(seconds, size, 1)[0] * 3600 / size.mean())


def newest(folder: Path) -> int:
    """The newest whole step of the run in `folder`, 0 if it has none."""
    with Checkpoints(folder / "run" / CHECKPOINTS, read_only=True) as checkpoints:
        return checkpoints.newest_step() or 0


if __name__ == "__main__":
    main()
