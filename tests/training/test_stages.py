"""The pipeline: with real training on two processes, and its order and failures with a stand-in.

`test_recipes.py` trains a whole one.
"""

import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from processes import declared_cluster, end, start_python
from runs import make_pipeline
from tiny_models import write_senteval

from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import Hung, UserError
from jtcse_jax.evaluation.sts import StsScore
from jtcse_jax.runtime import run_lock
from jtcse_jax.store.ensemble import Member
from jtcse_jax.store.saved_model import read_description
from jtcse_jax.training import stage_progress, stages
from jtcse_jax.training.stage_scores import print_table
from jtcse_jax.training.stages import run
from jtcse_jax.training.trainer import train


def test_pooling_and_serving_length_flow_through_the_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train", functools.partial(train, devices=jax.devices()[:1]))
    pipeline = make_pipeline(tmp_path)
    first = dataclasses.replace(pipeline.stages["language"].model, pooling="mean")
    chosen = {
        "first": dataclasses.replace(
            pipeline.stages["twin"],
            model=dataclasses.replace(first, serving_length=24),
            objective=ObjectiveConfig(name="simcse"),
        ),
        "twin": pipeline.stages["twin"],
    }
    chosen["twin"] = dataclasses.replace(
        chosen["twin"], model=dataclasses.replace(chosen["twin"].model, towers=("first", "first"))
    )
    run(dataclasses.replace(pipeline, stages=chosen))
    for name in ("first", "twin", "model"):
        description = read_description(tmp_path / "pipeline" / name)
        assert (description["pooling"], description["serving_length"]) == ("mean", 24)
        assert "max_len" not in description
    written = json.loads((tmp_path / "pipeline" / "twin" / "train_config.json").read_text())
    assert written["model"]["pooling"] is written["model"]["serving_length"] is None


TWO_PROCESSES = """
from pathlib import Path
from runs import make_pipeline
from jtcse_jax.training.stages import run
from jtcse_jax.runtime.command import set_up_jax
from jtcse_jax.evaluation import development
development.COLLAPSED = 2.0  # random towers
set_up_jax(False)
folder = Path({folder!r})
pipeline = make_pipeline(folder, sts=str(folder / "STS"))
del pipeline.stages["language"]
pipeline.stages["twin"] = __import__("dataclasses").replace(
    pipeline.stages["twin"],
    model=__import__("dataclasses").replace(
        pipeline.stages["twin"].model, towers=("scratch", "scratch")
    ),
)
print(run(pipeline)[-1]["sts"]["average"])
"""


@pytest.mark.slow
def test_two_processes_run_the_stages_together(tmp_path, capsys):
    """Each reads what the stage before wrote, and both find the same scores."""
    write_senteval(tmp_path / "STS")
    code = TWO_PROCESSES.format(folder=str(tmp_path))
    processes = [start_python("-c", code, **declared) for declared in declared_cluster(2)]
    ended = list(map(end, processes))
    assert [status for status, _, _ in ended] == [0, 0], ended
    first, second = (float(output.splitlines()[-1]) for _, output, _ in ended)
    assert first == pytest.approx(second, abs=1e-6)
    finished = tmp_path / "pipeline" / "student" / "finished.json"
    row = json.loads(finished.read_text())
    assert {"STS12", "STS16", "STS-B", "SICK-R", "average"} <= row["sts"].keys()
    print_table([row])
    said = capsys.readouterr().out
    assert f"{row['dev']:.2f}" in said
    for task, score in row["sts"].items():
        assert task in said and f"{score:.2f}" in said
    assert SentenceEncoder.load(tmp_path / "pipeline" / "model").width == 16


def test_a_stage_that_fails_is_named_and_the_next_start_goes_on_there(tmp_path, trainer):
    pipeline = make_pipeline(tmp_path)
    trainer.fails = "twin"
    with pytest.raises(UserError, match="stage twin: the disk is full"):
        run(pipeline)
    assert trainer.trained == ["language"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("language/*")}
    trainer.fails = None
    rows = run(pipeline)
    assert trainer.trained == ["language", "twin", "student", "model"]
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("language/*")}
    assert rows[1] == {
        "stage": "twin",
        "planned": "2 steps",
        "step": 2,
        "seconds": 4.0,
        "sentences_per_second": 4.0,
        "dev": 60.0,
        "collapsed": False,
        "sts": {},
    }
    assert rows[0]["dev"] is None and rows[0]["step"] == 2


@pytest.mark.parametrize("views", [2, 4])  # a sentence twice, or a pair with two hard negatives
def test_stages_are_counted_and_timed(tmp_path, trainer, monkeypatch, capsys, views):
    clock = [0.0]
    monkeypatch.setattr(stage_progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def train(config):
        clock[0] += 10
        trainer(config)

    monkeypatch.setattr(stages, "train", train)
    pipeline = make_pipeline(tmp_path)
    if views > 2:
        table = tmp_path / "table.csv"
        table.write_text("a,p,x,n,m\n" + "one,two,three,four,five\n" * 30)
        pipeline = dataclasses.replace(pipeline, source=str(table), columns=tuple("apnm"))
    run(pipeline)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("---")]
    # The log of each stage has 4 s of steps: 6 s are for all else. Views times towers of a sentence
    # are 1 in the first stage; the second has two towers, and the third one and the teacher's two.
    twin, student = 2 * views, 3 * views
    seconds = 4 * (twin + student) + 2 * 6, (4 + 4) * student / (1 + twin) + 6
    first, second = (f"0:{each // 60:02.0f}:{each % 60:02.0f}" for each in seconds)
    assert lines == [
        "--- stage 1 of 3: language",
        f"--- stage language took 0:00:10, the pipeline 0:00:10; about {first} to go",
        "--- stage 2 of 3: twin",
        f"--- stage twin took 0:00:10, the pipeline 0:00:20; about {second} to go",
        "--- stage 3 of 3: student",
        "--- stage student took 0:00:10, the pipeline 0:00:30",
    ]
    (tmp_path / "pipeline" / "student" / "finished.json").unlink()
    run(pipeline)
    assert "--- stage 2 of 3: twin, already finished\n--- stage 3" in capsys.readouterr().out


def test_no_time_is_estimated_for_stages_of_unknown_length(tmp_path, trainer, capsys):
    pipeline = make_pipeline(tmp_path)
    student = dataclasses.replace(pipeline.stages["student"], max_steps=None)
    run(dataclasses.replace(pipeline, stages=pipeline.stages | {"student": student}))
    lines = [line for line in capsys.readouterr().out.splitlines() if " took " in line]
    assert len(lines) == 3 and not any("to go" in line for line in lines)


def test_what_hung_in_a_stage_may_be_started_again(tmp_path, monkeypatch):
    def hang(config):
        raise Hung("no batch came")

    monkeypatch.setattr(stages, "train", hang)
    with pytest.raises(Hung, match="stage language: no batch came"):
        run(make_pipeline(tmp_path))


def test_two_pipelines_in_a_workdir_are_refused(tmp_path, trainer):
    pipeline = make_pipeline(tmp_path)
    with run_lock.hold(Path(pipeline.workdir)):
        with pytest.raises(UserError, match="is in use by process"):
            run(dataclasses.replace(pipeline, from_stage="twin"))
    assert trainer.trained == []
    run(pipeline)


def test_from_a_stage_on_all_is_trained_again_and_nothing_is_lost(tmp_path, trainer):
    pipeline = make_pipeline(tmp_path)
    run(pipeline)
    trainer.trained.clear()
    run(dataclasses.replace(pipeline, from_stage="twin"))
    assert trainer.trained == ["twin", "student", "model"]
    workdir = Path(pipeline.workdir)
    assert {path.name for path in (workdir / "superseded" / "0").iterdir()} == {
        "twin",
        "student",
        "model",
    }
    trainer.trained.clear()
    run(dataclasses.replace(pipeline, from_stage="student"))
    assert trainer.trained == ["student", "model"]
    assert (workdir / "superseded" / "1" / "student" / "finished.json").is_file()


def test_from_is_done_once_until_all_is_finished(tmp_path, trainer):
    pipeline = make_pipeline(tmp_path)
    run(pipeline)
    trainer.trained.clear()
    trainer.fails = "student"
    again = dataclasses.replace(pipeline, from_stage="twin")
    for _ in range(2):
        with pytest.raises(UserError, match="the disk is full"):
            run(again)
    assert trainer.trained == ["twin"]
    trainer.fails = None
    run(again)
    assert trainer.trained == ["twin", "student", "model"]
    superseded = Path(pipeline.workdir) / "superseded"
    assert [path.name for path in superseded.iterdir()] == ["0"]
    (superseded / "0").rename(superseded / "7")
    run(again)
    assert {path.name for path in superseded.iterdir()} == {"7", "8"}


def test_full_disk_under_the_mark_of_from_is_one_sentence(tmp_path, trainer):
    pipeline = make_pipeline(tmp_path)
    workdir = Path(pipeline.workdir)
    workdir.mkdir()
    (workdir / "from.txt").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"from\.txt cannot be written: No space left"):
        run(dataclasses.replace(pipeline, from_stage="twin"))


def test_a_finished_stage_with_another_config_is_not_taken_for_it(tmp_path, trainer):
    pipeline = make_pipeline(tmp_path)
    run(pipeline)
    with pytest.raises(UserError, match="stage language: .* another config: seed"):
        run(dataclasses.replace(pipeline, seed=1))
    longer = dict(pipeline.stages)
    longer["twin"] = dataclasses.replace(longer["twin"], max_steps=9)
    with pytest.raises(UserError, match="stage twin: .*2 steps, but now 9 steps.*--from twin"):
        run(dataclasses.replace(pipeline, stages=longer))
    assert trainer.trained == ["language", "twin", "student", "model"]


@pytest.mark.parametrize("content", ["{", "[]", '{"stage": "twin"}'])
def test_a_damaged_mark_of_a_finished_stage_is_named(tmp_path, trainer, content):
    pipeline = make_pipeline(tmp_path)
    run(pipeline)
    mark = Path(pipeline.workdir) / "twin" / "finished.json"
    mark.write_text(content)
    with pytest.raises(UserError, match=f"{mark} .*delete it"):
        run(pipeline)


def test_a_workdir_may_be_spelled_otherwise(tmp_path, trainer, monkeypatch):
    run(make_pipeline(tmp_path))
    monkeypatch.chdir(tmp_path)
    run(make_pipeline(tmp_path, workdir="../" + tmp_path.name + "/pipeline"))
    assert trainer.trained == ["language", "twin", "student", "model"]


def test_tasks_named_later_score_what_is_finished(tmp_path, trainer, monkeypatch):
    write_senteval(tmp_path / "STS")
    pipeline = make_pipeline(tmp_path)
    run(pipeline)
    score = StsScore(0.5, 0.4, 10, {})
    monkeypatch.setattr(stages, "evaluate_sts", lambda encode, tasks: {"STS-B": score})
    taken = SimpleNamespace(members=[Member(1.0, SimpleNamespace(step=2))], encode=None)
    monkeypatch.setattr(stages.SentenceEncoder, "load", lambda name: taken)
    rows = run(dataclasses.replace(pipeline, sts=str(tmp_path / "STS")))
    assert [row["sts"] for row in rows] == [{}, {"STS-B": 50.0}, {"STS-B": 50.0}]
    assert trainer.trained == ["language", "twin", "student", "model"]
