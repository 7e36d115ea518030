"""`benchmarks.accelerator`: how parts end, and all of it at small size on a CPU."""

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import pytest
from processes import QUICK_COMPILATION, WITHOUT_TORCH
from tiny_models import write_tokenizer

from benchmarks import accelerator, smoke
from benchmarks.accelerator import RESULTS, SMALL, USUAL, Part, make_parts, run_part, run_parts

OPTIONS = argparse.Namespace(output="out", tokenizer="folder", text="text.txt")


def script(name: str, code: str, limit: float = 60, **fields) -> Part:
    """A part that runs some Python; `sys.argv[2]` is its output."""
    return Part(name, limit, ("-c", "import os, sys, time\n" + code), **fields)


WRITES = "open(sys.argv[2], 'w').write('{\"rows\": [1]}')\n"


def test_parts_that_fail_or_are_cut_leave_the_next_ones(tmp_path):
    parts = [
        script("bad", WRITES + "sys.exit('error: no such thing')"),
        script("slow", "print('half', flush=True)\ntime.sleep(60)", limit=1),
        script("absent", "", package="no_such_package"),
        script("good", WRITES),
    ]
    rows = run_parts(parts, 100, tmp_path)
    assert [row["status"] for row in rows] == ["failed", "cut", "skipped", "done"]
    for row, word in zip(rows, ("no such thing", "half", "no_such_package", ""), strict=True):
        assert word in row["reason"]
    written = json.loads((tmp_path / RESULTS).read_text())["parts"]
    assert [part["result"] for part in written] == [{"rows": [1]}, None, None, {"rows": [1]}]
    assert [part["part"] for part in written] == ["bad", "slow", "absent", "good"]


def test_results_are_written_after_each_part(tmp_path):
    look = f"print(open({str(tmp_path / RESULTS)!r}).read())\n"
    run_parts([script("first", WRITES), script("second", look)], 100, tmp_path)
    seen = json.loads((tmp_path / "second.log").read_text())
    assert [part["part"] for part in seen["parts"]] == ["first"]


def test_no_part_starts_when_the_budget_is_spent(tmp_path):
    (row,) = run_parts([script("late", "")], 5, tmp_path)
    assert row["status"] == "skipped" and "budget" in row["reason"]
    assert not (tmp_path / "late.log").exists()


def test_a_cut_part_leaves_no_process(tmp_path):
    child = f"os.fork() or (open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())))\n"
    run_part(script("slow", child + "time.sleep(60)", limit=2), 100, tmp_path, dict(os.environ))
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):  # until its parent, which is not this process, has noticed
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the child of a part that was cut still runs")


class Parsed(Exception):
    """A command has read its arguments."""


@pytest.mark.parametrize("sizes", [USUAL, SMALL], ids=["usual", "small"])
def test_commands_accept_their_arguments(sizes, monkeypatch, tmp_path):
    def parse(self):
        original(self)
        raise Parsed

    original = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    parts = make_parts(sizes, OPTIONS)
    assert len({part.name for part in parts}) == len(parts)
    for part in parts:
        flag, name, *arguments = part.command
        assert flag == "-m"
        output = str(tmp_path / f"{part.name}.json")
        monkeypatch.setattr(sys, "argv", [name, *arguments, "--output", output])
        with pytest.raises(Parsed):
            importlib.import_module(name).main()


def test_unknown_part_is_one_sentence(refused, tmp_path):
    message = refused(
        accelerator, "--budget", 100, "--output", tmp_path, "--parts", "device", "colour"
    )
    assert "--parts colour" in message and "cold_start" in message


@pytest.mark.slow
def test_small_rehearsal(command, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", WITHOUT_TORCH)
    monkeypatch.setenv("XLA_FLAGS", QUICK_COMPILATION)
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    chosen = ("device", "train_tncse_4", "trace_tncse_4", "opponents_tncse")
    arguments = ("--budget", 300, "--output", tmp_path / "out", "--tokenizer", tokenizer)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command(accelerator, "--small", *arguments, "--parts", *chosen)
    parts = json.loads((tmp_path / "out" / RESULTS).read_text())["parts"]
    by_name = {part["part"]: part for part in parts}
    assert list(by_name) == list(chosen)
    assert [part["status"] for part in parts] == ["done", "done", "failed", "skipped"], parts
    assert all(part["result"]["rows"] for part in parts[:2])
    assert "on a CPU" in by_name["trace_tncse_4"]["reason"]
    assert "torch" in by_name["opponents_tncse"]["reason"]
    assert list((tmp_path / "out" / "trace_tncse_4").rglob("step.hlo.gz"))


@pytest.mark.slow
def test_smoke(command, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", WITHOUT_TORCH)
    monkeypatch.setenv("XLA_FLAGS", QUICK_COMPILATION)
    output = tmp_path / "smoke.json"
    command(smoke, *SMALL.smoke, "--output", output)
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 6 and all(row["passed"] == "yes" for row in rows)


def test_a_resumed_run_with_other_bits_does_not_pass():
    one = {"a": smoke.np.ones(3), "b": smoke.np.ones(2)}
    two = {"a": smoke.np.ones(3), "b": smoke.np.array([1, 1 + 1e-7])}
    assert [row["passed"] for row in smoke._resuming(one, one)] == ["yes", "yes"]
    changed, largest = smoke._resuming(one, two)
    assert (changed["value"], changed["passed"], largest["passed"]) == (1, "no", "no")
