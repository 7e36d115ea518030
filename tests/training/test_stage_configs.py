"""The configs of a pipeline's stages: what each takes from those before it."""

import dataclasses

from runs import make_pipeline

from jtcse_jax.training.stages import stage_configs


def test_every_stage_starts_from_those_before_it(tmp_path):
    configs = stage_configs(make_pipeline(tmp_path, seed=5))
    workdir = tmp_path / "pipeline"
    assert configs["twin"].model.towers == (str(workdir / "language"),) * 2
    assert configs["student"].model.towers == (f"{workdir / 'twin'}#1",)
    assert configs["student"].objective.teacher == str(workdir / "twin")
    assert configs["language"].model.towers == ("scratch",)
    for name, config in configs.items():
        assert config.workdir == str(workdir / name) and config.seed == 5042
        assert config.data.source == str(tmp_path / "text.txt")
        assert (config.data.dev is None) == (name == "language")


def test_a_teacher_can_be_a_sum_and_a_stage_without_a_dev_set(tmp_path):
    pipeline = make_pipeline(tmp_path)
    twin, student = pipeline.stages["twin"], pipeline.stages["student"]
    summed = dataclasses.replace(student.objective, teacher="0.5 * twin#1 + twin + elsewhere")
    unscored = dataclasses.replace(twin, data=dataclasses.replace(twin.data, dev=""))
    stages = pipeline.stages | {
        "twin": unscored,
        "student": dataclasses.replace(student, objective=summed),
    }
    configs = stage_configs(dataclasses.replace(pipeline, stages=stages))
    folder = tmp_path / "pipeline" / "twin"
    teacher = f"0.5 * {folder}#1 + 1 * {folder} + 1 * elsewhere"
    assert configs["student"].objective.teacher == teacher
    assert configs["twin"].data.dev is None and configs["student"].data.dev is not None


def test_columns_belong_to_the_source_of_the_pipeline(tmp_path):
    pipeline = make_pipeline(tmp_path, columns=("text",))
    data = dataclasses.replace(pipeline.stages["twin"].data, source="own.txt")
    own = dataclasses.replace(pipeline.stages["twin"], data=data)
    configs = stage_configs(dataclasses.replace(pipeline, stages=pipeline.stages | {"twin": own}))
    assert configs["language"].data.columns == ("text",)
    assert (configs["twin"].data.source, configs["twin"].data.columns) == ("own.txt", ())
