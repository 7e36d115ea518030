"""The benchmarks run, at small size; what they measure is not looked at.

That of the train step is run by test_readme.py.
"""

import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_models import write_tokenizer

from benchmarks import cold_start, encode, host, limits, losses, scaling, text, train_step
from benchmarks.race import UNITS, Outcome
from jtcse_jax.encoding.bank_encoder import PART
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank
from jtcse_jax.training.flops import Work


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
@pytest.mark.usefixtures("forked_contenders")
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
@pytest.mark.usefixtures("forked_contenders")
def test_encode(monkeypatch, tmp_path):
    output = tmp_path / "encode.json"
    sizes = ("--size", "tiny", "--towers", 2, "--sentences", 8, "--rounds", 1, "--turns", 1)
    run(encode, monkeypatch, *sizes, "--against", "--output", output)
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 2 and all(row["sentences/s"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_contenders")
def test_scaling(monkeypatch, tmp_path):
    output = tmp_path / "scaling.json"
    sizes = ("--size", "small", "--batch", 8, "--devices", 2, "--rounds", 1)
    run(scaling, monkeypatch, *sizes, "--output", output)
    (row,) = json.loads(output.read_text())["rows"]
    assert row["collectives"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("forked_contenders")
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
@pytest.mark.usefixtures("forked_contenders")
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
    # The gradient is bfloat16; the copy is read as float32 and written as bfloat16.
    seconds = limits.floor(small, work, "bfloat16", rate=1e9, copy=1e8)
    assert seconds == pytest.approx(products / 1e9 + 2 * size * (28 - 2 + 4 + 2) / 1e8)


def test_rate_of_many_calls_in_flight(monkeypatch):
    now, calls = [0.0], []

    def call():
        calls.append(now[0])
        now[0] += 0.03
        return np.zeros(1)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    rate = limits._rate(call, 6.0)
    assert rate == pytest.approx((200.0,) * 3)
    # One that compiles, one that is timed to find how many fill a round, then the rounds.
    assert len(calls) == 2 + limits._ROUNDS * 4  # 4 times 0.03 s are at least 0.1 s


class Loss:
    """Notes when it is read."""

    def __init__(self, events, number):
        self.events, self.number = events, number

    def __float__(self):
        self.events.append(("read", self.number))
        return float(self.number)


def test_a_step_is_dispatched_before_the_loss_of_the_one_before_is_read(monkeypatch):
    events = []

    def dispatch(sentences):
        events.append(("dispatch", sentences))
        return Loss(events, sentences)

    clock = itertools.count()  # a second passes at each look
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    work = train_step.in_rounds(dispatch, [10, 11, 12], seconds=2.5)
    assert work() == {"loss": 10.0, UNITS: 1}
    assert events == [("dispatch", 10), ("read", 10)]
    events.clear()
    assert work() == {"loss": 12.0, UNITS: 3 + 2}  # all batches, and until the time is over
    dispatched = [number for event, number in events if event == "dispatch"]
    read = [number for event, number in events if event == "read"]
    assert dispatched == read == [11, 12, 10, 11, 12]
    order = [event for event, _ in events]
    assert order == ["dispatch", *["dispatch", "read"] * 4, "read"]


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


def test_any_tokenizer_that_fits(tmp_path, monkeypatch):
    folder = str(write_tokenizer(tmp_path / "tokenizer"))
    batches = text.token_ids(None, folder, max_len=16, batch=3, count=2)
    assert [len(batch) for batch in batches] == [3, 3]
    ids = np.concatenate([sentence for batch in batches for sentence in batch])
    assert 0 < ids.max() < 200
    monkeypatch.setattr(text, "Architecture", lambda: SimpleNamespace(vocab_size=50))
    with pytest.raises(UserError, match="vocab_size = 50"):
        text.token_ids(None, folder, max_len=16, batch=3, count=2)


def test_other_vectors_fail_after_the_results_are_written(tmp_path, monkeypatch, capsys):
    def fake(contenders, *_, **__):
        for contender in contenders.values():
            if "vectors" in contender.arguments:
                ours = np.random.default_rng(0).normal(size=(4, 3))
                np.save(Path(contender.arguments["model"]) / f"vectors-{ours_name}.npy", ours)
                np.save(contender.arguments["vectors"], ours[::-1])
        return {
            name: Outcome([1.0], 1.0, 1.0, 1, "host", {"limit_seconds": 1.0}) for name in contenders
        }

    ours_name = "ours, text to vector"
    monkeypatch.setattr(encode, "race", fake)
    output = tmp_path / "encode.json"
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    model = ("--size", "tiny", "--tokenizer", tokenizer)
    against = ("--against", "length-sorted-torch", "--batch-size", 8)
    with pytest.raises(SystemExit):
        run(encode, monkeypatch, *model, *against, "--output", output)
    error = capsys.readouterr().err
    assert "length-sorted-torch, batches of 8" in error and "cosine" in error
    result = json.loads(output.read_text())
    assert result["options"]["sentences"] >= 2 * PART * jax.local_device_count()
    cosines = [row["cosine with ours"] for row in result["rows"]]
    assert cosines[:2] == [None, None] and cosines[2] < 0.99


def test_bad_input_is_one_sentence(monkeypatch, tmp_path, capsys):
    for options, said in (
        (("--text", tmp_path / "absent.txt"), "absent.txt"),
        (("--output", tmp_path / "absent" / "step.json"), "--output"),
    ):
        with pytest.raises(SystemExit):
            run(train_step, monkeypatch, "--size", "small", *options)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line
