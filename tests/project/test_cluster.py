"""One run of several real processes on the loopback: equal to one process, and ending as one."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import ROOT, SAVED, declared_cluster, end, start_cluster, start_python, wait_for
from runs import largest_difference, saved_params, tiny_config

from jtcse_jax.config import OptimizerConfig
from jtcse_jax.training.trainer import train

pytestmark = pytest.mark.slow

# 160 sentences in batches of 24: the last batch of an epoch has 16. Small steps, because AdamW
# turns a gradient's rounding into a whole step.
RATE = OptimizerConfig(learning_rate=3e-5)
EPOCHS = {"epochs": 2, "max_steps": None, "eval_every": 5, "save_every": 5}
FIELDS = f"optimizer=OptimizerConfig(learning_rate=3e-5), **{EPOCHS}"
LONG = "max_steps=4000, save_every=50, eval_every=5000, log_every=1000, keep=2"
BATCH = "data=__import__('dataclasses').replace(tiny_config(Path({0!r})).data, batch_size=24)"


def alone(folder: Path):
    """The same run in this process, on one device."""
    config = tiny_config(folder, optimizer=RATE, **EPOCHS)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=24))
    train(config, devices=jax.devices()[:1])
    return config


def metrics_of(folder: Path) -> list[dict]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_processes_equal_one(tmp_path):
    count, layout = 4, "tower_devices=2, fsdp_devices=2"
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    alone(tmp_path / "one")
    many = tmp_path / "many"
    batch = BATCH.format(str(many))
    ended = [end(process) for process in start_cluster(count, many, f"{FIELDS}, {layout}, {batch}")]
    assert [status for status, _, _ in ended] == [0] * count, ended
    assert f"of {count} process(es)" in ended[0][1] and "model:" in ended[0][1]
    followers = "".join(out for _, out, _ in ended[1:]).splitlines()
    assert all(line.startswith("[Gloo]") for line in followers), "one process speaks"
    difference = largest_difference(
        saved_params(tmp_path / "one" / "run"), saved_params(many / "run")
    )
    assert difference < 1e-5
    lines, others = metrics_of(tmp_path / "one"), metrics_of(many)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, other in zip(lines, others, strict=True):
        for name in line.keys() & {"loss", "nce", "icnce", "ictm", "grad_norm"}:
            assert other[name] == pytest.approx(line[name], rel=1e-3), name
    for path in (tmp_path / "one" / "run" / "dev_cosines").iterdir():
        cosines = np.load(many / "run" / "dev_cosines" / path.name)
        np.testing.assert_allclose(cosines, np.load(path), atol=1e-3)


def test_a_missing_process_is_an_error_within_its_time(tmp_path):
    short = "from jtcse_jax.runtime import distributed\ndistributed.initialize(timeout=5)"
    clusters = [start_cluster(2, tmp_path, present=[index], joining=short) for index in (0, 1)]
    for (process,) in clusters:
        status, _, err = end(process, timeout=60)
        assert status == 75, err
        assert "did not start within 5 s: start all of them" in err
        assert "Traceback" not in err and err.count("\n") == 1


def test_the_error_of_one_process_ends_all_and_is_the_only_one(tmp_path):
    """The text is not there on the second host; the first already waits for it in a collective."""
    missing = """
import jax
if jax.process_index() == 1:
    import dataclasses
    data = dataclasses.replace(config.data, source="nowhere.txt")
    config = dataclasses.replace(config, data=data)
"""
    first, second = map(end, start_cluster(2, tmp_path, LONG, before=missing))
    assert second[0] == 2 and second[2].count("error: ") == 1 and "nowhere.txt" in second[2]
    assert first[0] == 2 and "ended: process 1 failed" in first[2]
    assert "Traceback" not in first[2] + second[2]


def test_a_config_that_some_hosts_lack_is_printed_once_and_ends_all(tmp_path):
    processes = []
    for index, declared in enumerate(declared_cluster(3)):
        config = tmp_path / "absent.py" if index else ROOT / "configs" / "smoke.py"
        arguments = ("--config", config, "--workdir", tmp_path, "--data.cache-dir", tmp_path)
        command = map(str, ("-m", "jtcse_jax.train", *arguments))
        processes.append(start_python(*command, **declared))
    ended = [end(process) for process in processes]
    assert [status for status, _, _ in ended] == [2, 2, 2], ended
    said = "".join(err for _, _, err in ended)
    assert said.count("error: ") == 1 and "absent.py: no such file" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("failing", [{1}, {0, 1}], ids=["one", "all"])
def test_an_error_in_the_middle_is_printed_once_and_its_status_is_that_of_all(tmp_path, failing):
    bad = f"""
import jax
from jtcse_jax.errors import UserError
from jtcse_jax.training.loop import Loop
if jax.process_index() in {failing}:
    def read(*_):
        raise UserError("step 7 is not finite: lower the learning rate.")
    Loop._read = read
"""
    ended = [end(process) for process in start_cluster(2, tmp_path, LONG, before=bad)]
    assert [status for status, _, _ in ended] == [2, 2], ended
    said = "".join(err for _, _, err in ended)
    assert said.count("error: ") == 1 and "Traceback" not in said


# What is another one on process 1: files of the same names on disks of their own, say.
OTHERS = {
    "config, dev": """
import dataclasses
config = dataclasses.replace(config, seed=7)
from jtcse_jax.evaluation import development
load = development.load_pairs
def load_pairs(*names):
    pairs = load(*names)
    return dataclasses.replace(pairs, gold=pairs.gold + 1)
development.load_pairs = load_pairs
""",
    "model": """
from jtcse_jax.training import trainer
begin = trainer.start_model
def start_model(*arguments, **options):
    start = begin(*arguments, **options)
    start.towers["pooler"]["bias"] = start.towers["pooler"]["bias"] + 1e-6
    return start
trainer.start_model = start_model
""",
    "workdir": """
from jtcse_jax.training import trainer
trainer.user_path = lambda name: Path(name).with_name("elsewhere")
""",
}


@pytest.mark.parametrize("what", OTHERS)
def test_processes_that_do_not_run_the_same_are_refused(tmp_path, what):
    other = "import jax\nif jax.process_index() == 1:" + OTHERS[what].replace("\n", "\n    ")
    first, second = map(end, start_cluster(2, tmp_path, LONG, before=other))
    assert (first[0], second[0]) == (2, 2), (first, second)
    if what == "workdir":
        assert "elsewhere is not the same folder as on process 0" in second[2]
    else:
        assert "process 1 on" in second[2] and f"differs from process 0 in: {what}." in second[2]


def test_a_crash_in_the_middle_ends_all(tmp_path):
    crash = """
import jax
from jtcse_jax.training.loop import Loop
if jax.process_index() == 0:
    def crash(*_):
        raise ZeroDivisionError("a bug of ours")
    Loop._read = crash
"""
    first, second = map(end, start_cluster(2, tmp_path, LONG, before=crash))
    assert first[0] == 1 and "ZeroDivisionError: a bug of ours" in first[2]
    assert second[0] == 1 and "ended: process 0 failed" in second[2]
    assert "Traceback" not in second[2]


def test_sigterm_of_one_process_stops_all_at_one_step(tmp_path):
    processes = start_cluster(2, tmp_path, LONG)
    wait_for(tmp_path / "run" / "checkpoints", SAVED, processes[0])
    processes[1].terminate()
    ended = [end(process) for process in processes]
    assert [status for status, _, _ in ended] == [75, 75], ended
    assert "stopped by SIGTERM, step " in ended[0][1]
    leaves = jax.tree.leaves(saved_params(tmp_path / "run"))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    (reached,) = re.findall(r"stopped by SIGTERM, step (\d+)", ended[0][1])
    # Saving after every step, so that a count of its own steps by orbax would be in the way.
    processes = start_cluster(2, tmp_path, LONG.replace("save_every=50", "save_every=1"))
    wait_for(tmp_path / "run" / "checkpoints", str(int(reached) + 3), processes[0])
    processes[0].terminate()
    ended = [end(process) for process in processes]
    assert [status for status, _, _ in ended] == [75, 75], ended


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others(tmp_path, killed):
    """Of jax's own making, with a status on which launchers start again."""
    processes = start_cluster(2, tmp_path, LONG)
    wait_for(tmp_path / "run" / "checkpoints", SAVED, processes[0])
    processes.pop(killed).kill()
    status, _, err = end(processes[0], timeout=150)
    assert status == 1 or status < 0, err
