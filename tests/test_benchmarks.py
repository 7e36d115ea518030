"""The benchmarks run, at small size; what they measure is not looked at.

That of the train step is run by test_readme.py.
"""

import json

import jax
import numpy as np
import pytest
from processes import hide_torch

from benchmarks import cold_start, encode, host, limits, losses, scaling, train_step
from benchmarks.race import Contender, race
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank
from jtcse_jax.training.flops import Work


@pytest.fixture
def torch_hidden(monkeypatch, tmp_path):
    """For the processes of a test that needs no torch: transformers would import it in each."""
    monkeypatch.setenv("PYTHONPATH", hide_torch(tmp_path))


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    module.main()


@pytest.mark.slow
def test_losses_agree(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    output = tmp_path / "losses.json"
    sizes = ("--rows", 16, "--size", 8, "--rounds", 1)
    run(losses, monkeypatch, *sizes, "--without-published", "--output", output)
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 2 and np.ptp([row["loss"] for row in rows]) < 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("torch_hidden")
def test_host(monkeypatch, tmp_path):
    output = tmp_path / "host.json"
    sizes = ("--sentences", 400, "--batch", 8, "--batches", 4, "--step-ms", 1)
    once = ("--rounds", 1, "--turns", 1)
    run(host, monkeypatch, *sizes, *once, "--ours-only", "--output", output)
    result = json.loads(output.read_text())
    assert result["rows"][0]["batch"] == 8
    (cache,) = (row["value"] for row in result["text"] if row["unit"] == "bytes")
    assert 0 < cache < 75


@pytest.mark.slow
@pytest.mark.usefixtures("torch_hidden")
def test_encode(monkeypatch, tmp_path):
    output = tmp_path / "encode.json"
    sizes = ("--size", "small", "--towers", 2, "--sentences", 8, "--rounds", 1, "--turns", 1)
    run(encode, monkeypatch, *sizes, "--against", "--output", output)
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 2 and all(row["sentences/s"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.usefixtures("torch_hidden")
def test_scaling(monkeypatch, tmp_path):
    output = tmp_path / "scaling.json"
    sizes = ("--size", "small", "--batch", 8, "--devices", 2, "--rounds", 1)
    run(scaling, monkeypatch, *sizes, "--output", output)
    (row,) = json.loads(output.read_text())["rows"]
    assert row["collectives"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("torch_hidden")
def test_plan_of_a_large_batch(monkeypatch, tmp_path):
    temporary, planned = [], ("--plan", "--output")
    for sizes in ((), ("--micro-batch", 4)):
        output = tmp_path / "scaling.json"
        run(scaling, monkeypatch, "--size", "small", "--batch", 32, *sizes, *planned, output)
        (row,) = json.loads(output.read_text())["rows"]
        assert "s a step" not in row
        temporary.append(row["temporary MB a device"])
    assert temporary[1] < temporary[0] / 2


@pytest.mark.slow
@pytest.mark.usefixtures("torch_hidden")
def test_cold_start(monkeypatch, tmp_path):
    output = tmp_path / "cold_start.json"
    sizes = ("--size", "small", "--batch", 2, "--turns", 1)
    run(cold_start, monkeypatch, *sizes, "--output", output)
    first, again = json.loads(output.read_text())["rows"]
    assert first["imports s"] > 0 and first["compiling s"] > 0 and again["compiling s"] > 0


def test_floor_by_hand():
    small = limits.SIZES["small"]
    work = Work(tokens=100, squares=1000, views=10)
    products = 3 * 2 * limits.forward_flops(small, work)
    size = limits.parameters(small)
    leaves = jax.tree.leaves(Bank(small, 1).abstract())
    assert size == sum(np.prod(leaf.shape) for leaf in leaves)
    seconds = limits.floor(small, work, "float32", rate=1e9, copy=1e8)
    assert seconds == pytest.approx(products / 1e9 + 2 * size * 28 / 1e8)


def test_collectives_of_a_program():
    text = (
        '  %a = f32[2,3]{1,0} all-reduce(f32[2,3]{1,0} %x), metadata={op_name="jit(f)/psum"}\n'
        "  %b = (bf16[2]{0}, bf16[4]{0}) all-gather-start(bf16[2]{0} %y), dimensions={0}\n"
        "  %d = (f32[7]{0}, f32[2]{0}) all-reduce(f32[7]{0} %v, f32[2]{0} %w), to_apply=%add\n"
        "  %c = f32[5]{0} add(f32[5]{0} %z, f32[5]{0} %z)\n"
    )
    assert scaling.collectives(text) == [
        ("all-reduce", [24], "jit(f)/psum"),
        ("all-gather", [8], ""),
        ("all-reduce", [28, 8], ""),
    ]


def test_race_tells_what_a_contender_died_of():
    with pytest.raises(UserError, match="one: JSONDecodeError: Expecting property name"):
        race({"one": Contender(json.loads, {"s": "{"})}, rounds=1)


def test_bad_input_is_one_sentence(monkeypatch, tmp_path, capsys):
    for options, said in (
        (("--text", tmp_path / "absent.txt"), "absent.txt"),
        (("--output", tmp_path / "absent" / "step.json"), "--output"),
    ):
        with pytest.raises(SystemExit):
            run(train_step, monkeypatch, "--size", "small", *options)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line
