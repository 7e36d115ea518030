"""Correctness on this device: a resumed run has the same bits, and encoding agrees with a CPU.

    python -m benchmarks.smoke --output smoke.json

Trains `configs/smoke.py` twice with `--deterministic`, on the first sentences of its text: without
a stop, and in two processes of half the steps each. Every process compiles for itself. The vectors
of the result are compared with those that this machine's processor computes. If a check fails, the
command fails after it has written its results.
"""

import argparse
import dataclasses
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.encode import least_cosine
from benchmarks.race import report
from jtcse_jax.data.sources import open_source
from jtcse_jax.encoding.bank_encoder import BankEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.runtime import sharding
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.files import check_replaceable
from jtcse_jax.store import saved_model
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.store.workdir import METRICS
from jtcse_jax.training.metrics import read_jsonl

CONFIG = Path(__file__).parents[1] / "configs" / "smoke.py"
TRAINED, ENCODED = 2000, 256  # sentences
LEAST_COSINE = 0.9999  # of float32 vectors of this device and of a CPU


@one_line_errors
def main() -> None:
    """Trains, compares, prints a table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="an even number")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
        folder, half = Path(name), options.steps // 2
        sentences = list(islice(open_source("stdlib").read(), TRAINED))
        (folder / "text.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
        whole = pool.submit(_train, folder, "whole", [options.steps], half, options.dtype)
        resumed = pool.submit(_train, folder, "resumed", [half, options.steps], half, options.dtype)
        runs = whole.result(), resumed.result()
        models = [saved_model.load(run, step=options.steps) for run in runs]
        losses = [line["loss"] for line in read_jsonl(runs[0] / METRICS) if "loss" in line]
    rows = [
        *_training(losses),
        *_resuming(*(model.params for model in models)),
        *_encoding(models[0], sentences[:ENCODED]),
    ]
    failed = {row["check"]: f"{row['value']:g}" for row in rows if row["passed"] == "no"}
    report("smoke", rows, options.output, failed, steps=options.steps, dtype=options.dtype)


def _train(folder: Path, name: str, stops: list[int], every: int, dtype: str) -> Path:
    """The workdir of a run that ends at each of the stops and resumes from there."""
    workdir = folder / name
    for stop in stops:
        command = [sys.executable, "-m", "jtcse_jax.train", "--config", CONFIG, "--deterministic"]
        command += ["--workdir", workdir, "--data.cache-dir", folder / "cache"]
        command += ["--data.source", folder / "text.txt"]
        command += ["--data.dev", "None", "--model.compute-dtype", dtype]
        command += ["--optimizer.schedule", "constant", "--max-steps", stop]
        command += ["--save-every", every, "--log-every", "1"]
        done = subprocess.run(
            list(map(str, command)),
            env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise UserError(f"Training to step {stop} ended with status {done.returncode}: {last}")
    return workdir


def _training(losses: list[float]) -> list[dict[str, Any]]:
    return [
        _row("last loss", losses[-1], "finite", math.isfinite(losses[-1])),
        _row("last loss of the first", losses[-1] / losses[0], "below 1", losses[-1] < losses[0]),
    ]


def _resuming(whole: Any, resumed: Any) -> list[dict[str, Any]]:
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True)
    most = [float(np.abs(one - two).max()) for one, two in pairs]
    different = sum(difference != 0 for difference in most)
    return [
        _row("arrays that resuming changes", different, "0", different == 0),
        _row("largest difference by resuming", max(most), "0", max(most) == 0),
    ]


def _encoding(model: SavedModel, sentences: list[str]) -> list[dict[str, Any]]:
    cpu = sharding.make_mesh(devices=jax.local_devices(backend="cpu")[:1])
    expected = BankEncoder(
        model.bank, model.params, model.tokenizer, model.serving_length, mesh=cpu
    ).encode(sentences)
    rows = []
    for dtype, needed in (("float32", LEAST_COSINE), ("bfloat16", None)):
        bank = dataclasses.replace(model.bank, compute_dtype=dtype)
        encoder = BankEncoder.of(dataclasses.replace(model, bank=bank))
        cosine = least_cosine(expected.vectors, encoder.encode(sentences).vectors)
        passed = needed is None or cosine > needed
        check = f"least cosine, {dtype} with a CPU's float32"
        rows.append(_row(check, cosine, f"above {needed}" if needed else "-", passed))
    return rows


def _row(check: str, value: float, needed: str, passed: bool) -> dict[str, Any]:
    return {"check": check, "value": value, "needed": needed, "passed": "yes" if passed else "no"}


if __name__ == "__main__":
    main()
