"""What a pipeline refuses before its first stage, which may take hours."""

import dataclasses

import pytest
from runs import make_pipeline, tiny_config
from tiny_models import tiny_model, write_senteval

from jtcse_jax.architecture import Cross
from jtcse_jax.config import DataConfig, ObjectiveConfig
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.tokens import tokenize
from jtcse_jax.errors import UserError
from jtcse_jax.pipeline_config import Pipeline
from jtcse_jax.training.stages import _check_inputs, run, stage_configs


def test_an_incomplete_folder_of_tasks_is_refused_before_the_first_stage(tmp_path, trainer):
    sts = write_senteval(tmp_path / "downstream")
    (sts / "STS14-en-test" / "STS.gs.images.txt").unlink()
    with pytest.raises(UserError, match="incomplete .STS14: .*images.txt is missing"):
        run(make_pipeline(tmp_path, sts=str(sts)))
    assert trainer.trained == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"source": ""}, "it has no text"),
        ({"source": "nowhere.txt"}, "nowhere.txt: no such file"),
        ({"dev": "nowhere.tsv"}, "nowhere.tsv"),
    ],
)
def test_all_inputs_are_looked_at_before_the_first_stage(tmp_path, trainer, fields, problem):
    with pytest.raises(UserError, match=f"stage (language|twin): .*{problem}"):
        run(make_pipeline(tmp_path, **fields))
    assert not trainer.trained


def test_a_batch_larger_than_the_text_is_refused_before_the_first_stage(tmp_path, trainer):
    pipeline = make_pipeline(tmp_path)
    student = list(pipeline.stages)[-1]
    data = dataclasses.replace(pipeline.stages[student].data, batch_size=161)
    pipeline.stages[student] = dataclasses.replace(pipeline.stages[student], data=data)
    with pytest.raises(UserError, match=f"stage {student}: .* has 160 sentences .* one batch"):
        run(pipeline)
    assert not trainer.trained


@pytest.mark.parametrize(
    ("name", "pairs", "items"),
    [
        ("lines.txt", "same", 20),
        ("lines.txt", "adjacent", 19),
        ("pairs.tsv", "same", 10),
        ("pairs.tsv", "none", 20),
    ],
)
def test_a_batch_may_have_all_items_of_the_text_and_no_more(tmp_path, name, pairs, items):
    """The items are those that the batches of a run count."""
    (tmp_path / "lines.txt").write_text("".join(f"cat {number}\n" for number in range(20)))
    (tmp_path / "pairs.tsv").write_text("".join(f"cat {n}\tdog {n}\n" for n in range(10)))
    source = open_source(str(tmp_path / name))
    cache = tokenize(source, tiny_model(1).tokenizer, 16, str(tmp_path / "cache"))
    data = DataConfig(source=source.spec, pairs=pairs, batch_size=items)
    batches = PackedBatches(cache, data, seed=0)
    assert batches.num_items == items
    objective = ObjectiveConfig(name="mlm" if pairs == "none" else "simcse")
    config = tiny_config(tmp_path, data=data, objective=objective)
    _check_inputs("only", {"only": config})
    larger = dataclasses.replace(data, batch_size=items + 1)
    with pytest.raises(UserError, match=f"stage only: .*{name} has {items} "):
        _check_inputs("only", {"only": dataclasses.replace(config, data=larger)})


def test_repeated_words_of_a_file_of_pairs_are_refused_before_the_first_stage(tmp_path, trainer):
    (tmp_path / "pairs.tsv").write_text("a cat\tthe cat\n" * 20)
    pipeline = make_pipeline(tmp_path)
    twin = pipeline.stages["twin"]
    data = dataclasses.replace(twin.data, source=str(tmp_path / "pairs.tsv"), pairs="repeat")
    pipeline.stages["twin"] = dataclasses.replace(twin, data=data)
    with pytest.raises(UserError, match='stage twin: data.pairs = "repeat".*at "same"'):
        run(pipeline)
    assert not trainer.trained


def test_crossed_layers_that_do_not_divide_are_refused_before_the_first_stage(tmp_path, trainer):
    pipeline = make_pipeline(tmp_path)
    twin, language = pipeline.stages["twin"], pipeline.stages["language"]
    shape = dataclasses.replace(language.model.scratch, num_layers=3)
    model = dataclasses.replace(language.model, scratch=shape)
    pipeline.stages["language"] = dataclasses.replace(language, model=model)
    model = dataclasses.replace(twin.model, cross=Cross(num_layers=2))
    objective = ObjectiveConfig(name="jtcse")
    pipeline.stages["twin"] = dataclasses.replace(twin, model=model, objective=objective)
    with pytest.raises(UserError, match="stage twin: model.cross.num_layers = 2 .*3 layers"):
        run(pipeline)
    assert not trainer.trained


def test_an_unknown_first_stage_is_refused(tmp_path):
    with pytest.raises(UserError, match="--from nowhere: .* language, twin"):
        make_pipeline(tmp_path, from_stage="nowhere")


def test_without_a_config_there_is_nothing_to_run():
    with pytest.raises(UserError, match="stages is empty"):
        run(Pipeline())


def test_stages_cannot_look_ahead_or_be_paths(tmp_path):
    pipeline = make_pipeline(tmp_path)
    backwards = dict(reversed(pipeline.stages.items()))
    with pytest.raises(UserError, match="twin#1 is used before it is trained"):
        stage_configs(dataclasses.replace(pipeline, stages=backwards))
    for name in ("../up", "model", "superseded"):
        with pytest.raises(UserError, match="cannot name a folder"):
            dataclasses.replace(pipeline, stages={name: pipeline.stages["language"]})
