"""The log of a run: means, resuming, and a clock that stands still in pauses."""

import json
import math
import sys
import types

import pytest

from jtcse_jax.errors import UserError
from jtcse_jax.store.workdir import METRICS
from jtcse_jax.training import metrics
from jtcse_jax.training.metrics import MetricsLog, Speed, keep_until, read_jsonl

# Of TensorBoard's thread on a full disk; it may come when the next test runs.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def lines(workdir):
    return [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]


def test_lines_are_means_since_the_line_before(tmp_path):
    log = MetricsLog(tmp_path, start_step=None)
    for value in (1.0, 2.0, 6.0):
        log.add({"loss": value, "nce": 2 * value})
    means = log.flush(3, speed=70.0)
    assert means == {"loss": 3.0, "nce": 6.0, "speed": 70.0}
    log.write(3, {"dev_spearman": 0.5})
    log.add({"loss": 10.0})
    assert log.flush(4) == {"loss": 10.0}
    log.close()
    assert lines(tmp_path) == [
        {"step": 3, "loss": 3.0, "nce": 6.0, "speed": 70.0},
        {"step": 3, "dev_spearman": 0.5},
        {"step": 4, "loss": 10.0},
    ]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    log = MetricsLog(tmp_path, start_step=None)
    log.write(7, {"loss": 0.25})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = [event for event in EventFileLoader(str(file)).Load() if event.summary.value]
    (value,) = events[0].summary.value
    assert (events[0].step, value.tag, value.tensor.float_val[0]) == (7, "loss", 0.25)


def test_full_disk_under_tensorboard_is_one_sentence(tmp_path, largest_files):
    with largest_files(0), pytest.raises(UserError, match="tensorboard cannot be written: .*large"):
        MetricsLog(tmp_path, start_step=None)


def test_only_one_process_writes(tmp_path):
    log = MetricsLog(tmp_path, start_step=None, write=False)
    log.add({"loss": 4.0})
    assert log.flush(1) == {"loss": 4.0}
    log.close()
    assert not list(tmp_path.iterdir())


def test_resumed_log_forgets_later_steps(tmp_path):
    log = MetricsLog(tmp_path, start_step=None)
    for step in (2, 4, 6):
        log.write(step, {"loss": float(step)})
    log.close()
    log = MetricsLog(tmp_path, start_step=4)
    log.write(6, {"loss": 60.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(2, 2), (4, 4), (6, 60)]


def test_log_of_a_run_that_starts_anew_is_empty(tmp_path):
    for score in (0.1, 0.2):  # killed before its first checkpoint, then started again
        log = MetricsLog(tmp_path, start_step=None)
        log.write(0, {"dev_spearman": score})
        log.close()
    assert lines(tmp_path) == [{"step": 0, "dev_spearman": 0.2}]


def test_log_of_a_run_that_resumes_from_step_0_keeps_its_score(tmp_path):
    MetricsLog(tmp_path, start_step=None).write(0, {"dev_spearman": 0.1})
    log = MetricsLog(tmp_path, start_step=0)
    log.write(1, {"dev_spearman": 0.2})
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]


@pytest.mark.parametrize("before", ['{"step": 1, "loss": 3.0}\n', ""])
def test_line_cut_by_a_kill_is_dropped(tmp_path, before):
    path = tmp_path / METRICS
    path.write_text(before + '{"step": 2, "lo')
    whole = [json.loads(line) for line in before.splitlines()]
    assert read_jsonl(path) == whole
    log = MetricsLog(tmp_path, start_step=2)
    log.write(3, {"loss": 1.0})
    log.close()
    assert lines(tmp_path) == [*whole, {"step": 3, "loss": 1.0}]


def test_no_log_yet(tmp_path):
    assert read_jsonl(tmp_path / METRICS) == []
    keep_until(tmp_path / METRICS, 5)
    assert not list(tmp_path.iterdir())


def test_speed_counts_training_alone(monkeypatch):
    now = 100.0
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now)
    speed = Speed(steps_left=10)

    def step_after(seconds):
        nonlocal now
        now += seconds
        speed.step(sentences=8)

    step_after(30)  # compiles
    assert speed.per_second("sentences") == 0 and math.isnan(speed.seconds_left)
    step_after(2)
    step_after(4)
    assert speed.per_second("sentences") == pytest.approx(8 / 3)  # two steps in six seconds
    assert speed.seconds_left == pytest.approx(7 * 3)
    speed.pause()
    step_after(1000)  # an evaluation: starts the clock again
    assert speed.per_second("sentences") == pytest.approx(8 / 3)
    assert speed.seconds_left == pytest.approx(6 * 3)
    step_after(3)
    assert speed.per_second("sentences") == pytest.approx(8 / 3)
    step_after(11)
    assert speed.per_second("sentences") == pytest.approx(4 * 8 / 20)


def test_speed_forgets_a_shape_that_compiled_late(monkeypatch):
    now = 0.0
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now)
    speed = Speed(steps_left=1000)
    for seconds in [0, 1, 30] + 100 * [1]:
        now += seconds
        speed.step(sentences=8)
    assert speed.per_second("sentences") == pytest.approx(8)
    assert speed.seconds_left == pytest.approx(1000 - 103)


def test_wandb_gets_the_same_numbers_and_a_resumed_run_is_the_same_run(tmp_path, monkeypatch):
    """A stand-in: the real one wants a login, or writes a binary file of its own."""
    made = []

    class Run:
        def __init__(self, **options):
            self.options, self.logged, self.finished = options, [], False
            made.append(self)

        def define_metric(self, name, step_metric):
            self.steps = (name, step_metric)

        def log(self, values):
            self.logged.append(values)

        def finish(self):
            self.finished = True

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=Run))
    for start in (0, 7):
        log = MetricsLog(
            tmp_path, start_step=start, wandb="sentences", config={"seed": 3} if start else None
        )
        log.write(start + 1, {"loss": 0.25})
        log.close()
    first, again = made
    assert first.logged == [{"step": 1, "loss": 0.25}] and first.steps == ("*", "step")
    assert again.logged == [{"step": 8, "loss": 0.25}] and again.finished
    assert again.options["id"] == first.options["id"] and again.options["resume"] == "allow"
    assert again.options["project"] == "sentences" and again.options["config"] == {"seed": 3}
    MetricsLog(tmp_path, start_step=None, write=False, wandb="sentences")
    assert len(made) == 2


def test_full_disk_under_the_id_of_wandb_leaves_no_half_of_it(tmp_path, monkeypatch, largest_files):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace())
    with (
        largest_files(9),
        pytest.raises(UserError, match=r"wandb_id\.txt cannot be written: .*lar"),
    ):
        MetricsLog(tmp_path, start_step=None, wandb="sentences")
    assert not (tmp_path / "wandb_id.txt").exists()


def test_wandb_that_cannot_start_is_one_line(tmp_path, monkeypatch):
    def init(**options):
        raise RuntimeError("no API key\nsee the documentation")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(UserError, match=r"cannot start \(no API key\)"):
        MetricsLog(tmp_path, start_step=None, wandb="sentences")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        MetricsLog(tmp_path, start_step=None, wandb="sentences")
