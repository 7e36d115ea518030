"""The files in configs/: each loads, names its command, and has the published numbers."""

import re

import pytest
from processes import ROOT

from jtcse_jax import config as configs
from jtcse_jax.config import Config
from jtcse_jax.config_file import load_config_file
from jtcse_jax.pipeline_config import Pipeline
from jtcse_jax.training.stages import exported_name, stage_configs

FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
PIPELINES = [name for name in FILES if name.startswith(("pipeline_", "ablation_"))]


ADAMW = {"optimizer.b1": 0.9, "optimizer.b2": 0.999, "optimizer.eps": 1e-8}
STAGE_TWO = ADAMW | {
    "optimizer.weight_decay": 0.01,
    "optimizer.decay": "all",
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.max_grad_norm": None,
    "objective.temperature": 0.05,
    "objective.nce_weight": 1.0,
    "objective.icnce_weight": 1.0,
    "objective.ictm_weight": 1.0,
    "objective.modulus_half": True,
    "model.pooling": None,  # of BERT and RoBERTa, whose folders name none: cls
    "data.max_len": 64,
    "data.pairs": "same",
    "epochs": 1,
    "seed": 42,
    "eval_every": 100,
}
CROSSED = {
    "objective.name": "jtcse",
    "model.cross.mode": "side",
    "model.cross.exchange": "value",
    "model.cross.num_layers": 6,
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
}
STAGE_ONE = ADAMW | {
    "objective.name": "simcse",
    "objective.simcse_negatives": "other_view",
    "objective.mlp_head": True,
    "objective.temperature": 0.05,
    "model.pooling": None,  # of BERT and RoBERTa, whose folders name none: cls
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
    "data.max_len": 32,
    "data.pairs": "same",
    "epochs": 1,
    "seed": 42,
}
BERT, ROBERTA = {"data.batch_size": 64}, {"data.batch_size": 256}
PUBLISHED = {
    "jtcse_bert_base": STAGE_TWO | CROSSED | BERT | {"optimizer.learning_rate": 1.3e-6},
    "jtcse_roberta_base": STAGE_TWO | CROSSED | ROBERTA | {"optimizer.learning_rate": 1e-6},
    "tncse_bert_base": STAGE_TWO
    | BERT
    | {
        "objective.name": "tncse",
        "optimizer.learning_rate": 1e-6,
        "model.dropout": 0.00025,
        "model.attention_dropout": 0.00025,
    },
    "tncse_roberta_base": STAGE_TWO
    | ROBERTA
    | {"objective.name": "tncse", "model.dropout": 0.0175, "model.attention_dropout": 0.0175},
    "distill_bert_base": {
        "objective.name": "distill",
        "objective.temperature": 0.05,
        "optimizer.learning_rate": 1e-5,
        "optimizer.schedule": "constant",
        "data.batch_size": 64,
        "model.towers": ("runs/jtcse_bert_base#0",),
    },
    "distill_roberta_base": {"optimizer.learning_rate": 1e-5, "data.batch_size": 256},
    "simcse_bert_base": STAGE_ONE | BERT | {"optimizer.learning_rate": 3e-5},
    "simcse_roberta_base": STAGE_ONE | {"data.batch_size": 512, "optimizer.learning_rate": 1e-5},
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_loads_and_says_its_command(name):
    path = ROOT / "configs" / f"{name}.py"
    config = load_config_file(path, Pipeline if name in PIPELINES else Config)
    assert config.workdir.startswith(f"runs/{name}")
    assert f"--config configs/{name}.py" in path.read_text()
    for other in re.findall(r"configs/(\w+)\.py", path.read_text()):
        assert other in FILES, f"{name} speaks of {other}, which is not there"


@pytest.mark.parametrize("name", ["bert_base", "roberta_base"])
def test_a_student_learns_from_the_twin_it_starts_from(name):
    student = load_config_file(ROOT / "configs" / f"distill_{name}.py")
    twin = load_config_file(ROOT / "configs" / f"jtcse_{name}.py")
    assert student.objective.teacher == twin.workdir
    assert student.model.towers == (f"{twin.workdir}#0",)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hyperparameters(name):
    config = load_config_file(ROOT / "configs" / f"{name}.py")
    found = {}
    for field in PUBLISHED[name]:
        value = config
        for part in field.split("."):
            value = getattr(value, part)
        found[field] = value
    assert found == PUBLISHED[name]


@pytest.mark.parametrize("name", ["jtcse_bert_base", "jtcse_roberta_base"])
def test_towers_of_a_twin_are_those_the_first_stage_writes(name):
    twin = load_config_file(ROOT / "configs" / f"{name}.py")
    path = ROOT / "configs" / f"{name.replace('jtcse', 'simcse')}.py"
    stage_one = load_config_file(path)
    first, second = twin.model.towers
    assert stage_one.workdir == first and first.endswith("_a")
    assert second == first.removesuffix("_a") + "_b"
    assert stage_one.model.pooling == twin.model.pooling


def test_defaults_are_the_published_twin():
    assert configs.Config().seed == 42 and configs.OptimizerConfig().learning_rate == 1.3e-6


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("pipeline_*.py")), ids=str)
def test_the_recipes_in_configs_fit_together(path):
    pipeline = load_config_file(path, Pipeline)
    configs = stage_configs(pipeline)
    stage, tower, _ = exported_name(pipeline).partition("#")
    assert tower or len(configs[stage].model.towers) == 1, "one tower is enough to serve"


def test_variants_of_the_ablation_differ_in_one_field_and_share_their_start():
    pipeline = load_config_file(ROOT / "configs" / "ablation_minilm.py", Pipeline)
    configs = stage_configs(pipeline)
    default = configs.pop("jtcse")
    assert configs.pop("distilled").objective.teacher == default.workdir
    for name, config in configs.items():
        assert set(config.model.towers) == set(default.model.towers), name
        changed = [
            part
            for part in ("model", "data", "objective", "optimizer", "seed", "max_steps")
            if getattr(config, part) != getattr(default, part)
        ]
        assert len(changed) == 1 or (name == "simcse" and changed == ["model", "objective"]), name
