"""The benchmarks run, at small size; what they measure is not looked at."""

import json

import jax
import numpy as np
import pytest

from benchmarks import limits, losses, scaling, train_step
from benchmarks.race import Contender, race
from jtcse_jax.config import Cross
from jtcse_jax.flops import Work
from jtcse_jax.models.towers import Bank


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    module.main()


@pytest.mark.slow
def test_train_step_and_opponents(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    output = tmp_path / "step.json"
    sizes = ("--size", "small", "--batch", 4, "--batches", 1, "--rounds", 1, "--turns", 1)
    opponents = ("--against", "well made", "as published")
    run(train_step, monkeypatch, *sizes, "--objective", "jtcse", *opponents, "--output", output)
    result = json.loads(output.read_text())
    assert len(result["rows"]) == 3 and "jax" in result["environment"]
    seen = {name: one["numbers"]["loss"] for name, one in result["outcomes"]["jtcse"].items()}
    assert all(np.isfinite(loss) for loss in seen.values())


@pytest.mark.slow
def test_losses_agree(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    output = tmp_path / "losses.json"
    run(losses, monkeypatch, "--rows", 16, "--size", 8, "--rounds", 1, "--output", output)
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 3 and np.ptp([row["loss"] for row in rows]) < 1e-4


@pytest.mark.slow
def test_scaling(monkeypatch, tmp_path):
    output = tmp_path / "scaling.json"
    sizes = ("--size", "small", "--batch", 8, "--devices", 2, "--rounds", 1)
    run(scaling, monkeypatch, *sizes, "--output", output)
    (row,) = json.loads(output.read_text())["rows"]
    assert row["collectives"] > 0


def test_floor_by_hand():
    small = limits.SIZES["small"]
    work = Work(tokens=100, squares=1000, views=10)
    products = 3 * 2 * limits.forward_flops(small, work)
    size = limits.parameters(small)
    assert size == sum(np.prod(leaf.shape) for leaf in leaves(Bank(small, 1)))
    seconds = limits.floor(small, work, "float32", rate=1e9, copy=1e8)
    assert seconds == pytest.approx(products / 1e9 + 2 * size * 28 / 1e8)
    assert limits.crossed_layers_of(small, Cross(num_layers=2)) == 3
    assert limits.crossed_layers_of(small, Cross(num_layers=0)) == 0


def leaves(bank):
    return jax.tree.leaves(bank.abstract())


def test_moved_bytes_of_a_program():
    text = (
        "  %a = f32[2,3]{1,0} all-reduce(f32[2,3]{1,0} %x), replica_groups={}\n"
        "  %b = (bf16[2]{0}, bf16[4]{0}) all-gather-start(bf16[2]{0} %y), dimensions={0}\n"
        "  %d = (f32[7]{0}, f32[2]{0}) all-reduce(f32[7]{0} %v, f32[2]{0} %w), to_apply=%add\n"
        "  %c = f32[5]{0} add(f32[5]{0} %z, f32[5]{0} %z)\n"
    )
    assert scaling.moved_bytes(text) == 24 + 8 + 36


def failing():
    raise ValueError("no such thing")


def test_race_tells_what_a_contender_died_of():
    with pytest.raises(RuntimeError, match="one: ValueError: no such thing"):
        race({"one": Contender(failing)}, rounds=1)
