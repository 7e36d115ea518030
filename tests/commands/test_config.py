"""Configs: files, overrides and what is refused, through the real command line."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from processes import ROOT

from jtcse_jax import config_file, train
from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig
from jtcse_jax.config_file import load_config_file, to_json
from jtcse_jax.errors import UserError
from jtcse_jax.pipeline_config import Pipeline

FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
PIPELINES = [name for name in FILES if name.startswith(("pipeline_", "ablation_"))]

SMALL_FILE = """
from jtcse_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig
config = Config(
    seed=7,
    model=ModelConfig(towers=("one",)),
    data=DataConfig(batch_size=16),
    objective=ObjectiveConfig(name="simcse"),
)
"""


def parse(arguments: list[str]) -> Config:
    return config_file.parse(Config, "jtcse_jax.train", arguments)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL_FILE)
    return path


def test_file_gives_the_defaults_and_overrides_are_typed(file):
    assert parse(["--config", str(file)]) == load_config_file(file)
    config = parse(
        [
            *(
                "--data.batch-size",
                "32",
                "--config",
                str(file),
                "--optimizer.learning-rate",
                "3e-5",
            ),
            *("--model.towers", "a", "b", "c", "--model.cross.mode", "off", "--max-steps", "5"),
            *("--data.dev", "dev.tsv", "--objective.no-modulus-half", "--deterministic"),
        ]
    )
    assert config == Config(
        seed=7,
        model=ModelConfig(towers=("a", "b", "c"), cross=Cross(mode="off")),
        data=DataConfig(batch_size=32, dev="dev.tsv"),
        objective=ObjectiveConfig(name="simcse", modulus_half=False),
        optimizer=OptimizerConfig(learning_rate=3e-5),
        max_steps=5,
        deterministic=True,
    )
    assert type(config.data.batch_size) is int and type(config.optimizer.learning_rate) is float


def test_without_a_file_the_defaults_are_those_of_the_fields():
    assert parse([]) == Config()
    assert parse(["--optimizer.max-grad-norm", "0.5"]).optimizer.max_grad_norm == 0.5
    assert parse(["--max-steps", "None"]).max_steps is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data.batch-sizes", "3"], ["--data.batch-sizes", "--data.batch-size INT"]),
        (["--data.batch-size", "many"], ["--data.batch-size", "'many'", "INT"]),
        (["--objective.name", "foo"], ["objective.name", "'foo'", "simcse", "tncse", "jtcse"]),
        (["--model.cross.mode", "both"], ["--model.cross.mode", "'both'", "side", "main", "off"]),
        (["--data.batch-size"], ["--data.batch-size"]),
        (["--temperature", "3"], ["--temperature", "--objective.temperature"]),
    ],
)
def test_wrong_override_names_field_value_and_what_is_allowed(
    monkeypatch, capsys, arguments, named
):
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exit:
        train.main()
    assert exit.value.code == 2
    said = capsys.readouterr().err
    for words in named:
        assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.batch-size", "1"], "data.batch_size = 1: "),
        (["--config", "nowhere.py"], "--config nowhere.py: no such file"),
        (["--model.towers", "a"], "objective.name = jtcse needs two towers"),
        (["--model", "a"], "--model: name the start of each tower, with --model.towers"),
    ],
)
def test_refused_value_is_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as exit:
        train.main()
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


def test_help_explains_every_field():
    command = [sys.executable, "-m", "jtcse_jax.train", "--config", "configs/smoke.py", "-h"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    fields, explained = [], " ".join(said.replace("│", " ").split())

    def walk(kind, prefix):
        for field in dataclasses.fields(kind):
            name = prefix + field.name.replace("_", "-")
            if dataclasses.is_dataclass(field.type):
                walk(field.type, name + ".")
            else:
                fields.append(name)

    walk(Config, "--")
    assert len(fields) > 40
    for name in fields:
        assert name in explained, name
    assert explained.count("(default: ") >= len(fields)
    assert "Sentences in a batch, over all devices" in explained
    assert "(default: runs/smoke)" in explained  # of the file, not of Config


TWO = ("a", "b")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Architecture(num_heads=7), "model.scratch.num_heads = 7"),
        (lambda: Architecture(num_heads=0), "model.scratch.num_heads = 0"),
        (lambda: Architecture(num_layers=0), "model.scratch.num_layers = 0"),
        (lambda: Architecture(vocab_size=-1), "model.scratch.vocab_size = -1"),
        (lambda: Cross(num_layers=5).interval(12), r"model.cross.num_layers = 5 .*\[1, 2, 3, 4, 6"),
        (lambda: Cross(num_layers=-1).interval(12), "model.cross.num_layers = -1"),
        (lambda: ModelConfig(towers=()), "model.towers is empty"),
        (lambda: ModelConfig(towers=("scratch", "a")), "model.towers = .*scratch"),
        (lambda: ModelConfig(dropout=1.0), "model.dropout = 1.0"),
        (lambda: ModelConfig(dropout=-0.1), "model.dropout = -0.1"),
        (lambda: ModelConfig(attention_dropout=2), "model.attention_dropout = 2"),
        (lambda: ModelConfig(dropout=2**-17), "model.dropout = 7.6"),
        (lambda: ModelConfig(attention_dropout=1e-6), "model.attention_dropout = 1e-06"),
        (lambda: DataConfig(batch_size=1), "data.batch_size = 1"),
        (lambda: DataConfig(max_len=2), "data.max_len = 2"),
        (lambda: ModelConfig(serving_length=2), "model.serving_length = 2"),
        (lambda: DataConfig(row_length=63), "data.row_length = 63 .*data.max_len = 64"),
        (lambda: DataConfig(slots=0), "data.slots = 0"),
        (lambda: DataConfig(micro_batch=12), "data.micro_batch = 12 .*data.batch_size = 64"),
        (lambda: DataConfig(micro_batch=0), "data.micro_batch = 0"),
        (lambda: DataConfig(batches="sorted"), "data.batches = 'sorted'"),
        (lambda: DataConfig(batches="similar", pairs="none"), "data.batches = similar.* none"),
        (
            lambda: Config(
                model=ModelConfig(towers=("scratch", "scratch")), data=DataConfig(batches="similar")
            ),
            "data.batches = similar.*model.towers",
        ),
        (lambda: DataConfig(random_share=1.0), "data.random_share = 1.0"),
        (lambda: DataConfig(random_share=-0.1), "data.random_share = -0.1"),
        (lambda: DataConfig(timeout=0.0), "data.timeout = 0.0"),
        (lambda: Config(fsdp_devices=0), "fsdp_devices = 0"),
        (lambda: Config(not_finite="ignore"), "not_finite = 'ignore'"),
        (lambda: ObjectiveConfig(temperature=0.0), "objective.temperature = 0.0"),
        (lambda: ObjectiveConfig(temperature=float("nan")), "objective.temperature = nan"),
        (lambda: OptimizerConfig(learning_rate=0), "optimizer.learning_rate = 0"),
        (lambda: OptimizerConfig(learning_rate=float("inf")), "optimizer.learning_rate = inf"),
        (lambda: OptimizerConfig(eps=0.0), "optimizer.eps = 0.0"),
        (lambda: OptimizerConfig(weight_decay=float("nan")), "optimizer.weight_decay = nan"),
        (lambda: OptimizerConfig(max_grad_norm=0.0), "optimizer.max_grad_norm = 0.0"),
        (lambda: OptimizerConfig(warmup_steps=-1), "optimizer.warmup_steps = -1"),
        (lambda: OptimizerConfig(b1=1.0), "optimizer.b1 = 1.0"),
        (lambda: OptimizerConfig(b2=-0.5), "optimizer.b2 = -0.5"),
        (lambda: Config(model=ModelConfig(towers=("a",))), "objective.name = jtcse .*model.towers"),
        (lambda: Config(tower_devices=3), r"tower_devices = 3: choose 1, or .*\(2\)"),
        (lambda: Config(epochs=0), "epochs = 0"),
        (lambda: Config(max_steps=0), "max_steps = 0"),
        (lambda: Config(eval_every=0), "eval_every = 0"),
        (lambda: Config(save_every=-3), "save_every = -3"),
        (lambda: Config(log_every=0), "log_every = 0"),
        (lambda: Config(keep=0), "keep = 0"),
        (lambda: Config(seed=-1), "seed = -1"),
        (lambda: Config(seed=2**32), "seed = 4294967296"),
    ],
)
def test_refusal_names_field_and_value(make, named):
    with pytest.raises(UserError, match="^" + named):
        make()


def test_values_at_the_bounds_are_taken():
    Architecture(num_heads=1)
    ModelConfig(towers=("scratch", "scratch"), dropout=0.0, attention_dropout=0.0)
    ModelConfig(dropout=7.63e-6, attention_dropout=0.9999)
    DataConfig(batch_size=2, max_len=3, row_length=3, slots=1)
    OptimizerConfig(max_grad_norm=None, warmup_steps=0, b1=0.0)
    Config(seed=0, tower_devices=2, keep=1)
    Config(model=ModelConfig(towers=("a",)), objective=ObjectiveConfig(name="simcse"))
    layers = [Cross(num_layers=n).interval(12) for n in (0, 1, 2, 3, 4, 6, 12)]
    assert layers == [None, 12, 6, 4, 3, 2, 1]
    assert Cross(mode="off", num_layers=5).interval(12) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("configs = 3", ": has no `config"),
        ("config = 3", ": has no `config"),
        (
            "from jtcse_jax.pipeline_config import Pipeline\nconfig = Pipeline()",
            " is a config for another command: python -m jtcse_jax.pipeline",
        ),
        ("config = (", ": SyntaxError.*line 1"),
        ("import nothing_of_that_name", ":1: ModuleNotFoundError: .*nothing_of_that_name"),
        ("from jtcse_jax.config import *\nconfig = Config(keep=0)", ":2: keep = 0"),
        ("from jtcse_jax.config import *\nconfig = Config(kept=0)", ":2: TypeError.*kept"),
    ],
)
def test_file_that_does_not_load_is_named(tmp_path, content, message):
    path = tmp_path / "broken.py"
    path.write_text(content)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}{message}"):
        load_config_file(path)


def test_json_holds_every_field(file):
    config = load_config_file(file)
    written = json.loads(to_json(config))
    kinds = {
        "model": ModelConfig,
        "data": DataConfig,
        "objective": ObjectiveConfig,
        "optimizer": OptimizerConfig,
    }
    written["model"]["towers"] = tuple(written["model"]["towers"])
    written["data"]["columns"] = tuple(written["data"]["columns"])
    written["objective"]["matryoshka"] = tuple(written["objective"]["matryoshka"])
    written["model"]["cross"] = Cross(**written["model"]["cross"])
    written["model"]["scratch"] = Architecture(**written["model"]["scratch"])
    parts = {name: kind(**written[name]) for name, kind in kinds.items()}
    assert Config(**written | parts) == config


# The authors' scripts, and what docs/reproduction.md chooses where they are silent (SimCSE's own
# rates per backbone: arXiv 2104.08821, appendix A).
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(pooling="sum"), r"model\.pooling = 'sum': choose one of cls, mean"),
        (lambda: Cross(mode="sid"), r"model\.cross\.mode = 'sid': choose one of side, main, off"),
        (lambda: ObjectiveConfig(name="JTCSE"), r"objective\.name = 'JTCSE'.*simcse, tncse"),
        (lambda: OptimizerConfig(schedule="Linear"), r"optimizer\.schedule = 'Linear'.*cosine"),
        (lambda: DataConfig(pairs="next"), r"data\.pairs = 'next'"),
        (lambda: Config(dropout_generator="philox"), r"^dropout_generator = 'philox'"),
        (lambda: ModelConfig(towers="scratch"), r"model\.towers = 'scratch'.*a tuple"),
        (lambda: ModelConfig(towers=("a", 3)), r"model\.towers = \('a', 3\): must be tuple\[str"),
        (lambda: ModelConfig(cross="side"), r"model\.cross = 'side': must be Cross\."),
        (lambda: DataConfig(dev=3), r"data\.dev = 3: must be str \| None\."),
        (lambda: DataConfig(batch_size=8.0), r"data\.batch_size = 8\.0: must be int\."),
        (lambda: OptimizerConfig(learning_rate="1e-5"), r"learning_rate = '1e-5': must be float"),
        (
            lambda: OptimizerConfig(weight_decay=1e9),
            r"weight_decay = 1000000000\.0: use 0 to 1e\+06",
        ),
        (lambda: DataConfig(timeout=float("inf")), r"data\.timeout = inf: must be a finite number"),
        (lambda: ObjectiveConfig(nce_weight=float("nan")), r"nce_weight = nan: must be a finite"),
        (lambda: ObjectiveConfig(temperature=10**400), r"temperature = 1000.*must be a finite"),
        (lambda: Pipeline(seed="0"), r"^seed = '0': must be int\."),
        (lambda: Pipeline(stages={"a": 3}), r"^stages = \{'a': 3\}: must be dict"),
        (lambda: Config(max_steps="all"), r"^max_steps = 'all': must be int \| None\."),
        (lambda: Config(workdir="gs://bucket/run"), r"workdir = gs://bucket/run: mount"),
    ],
)
def test_values_in_a_config_file_are_checked_too(make, message):
    with pytest.raises(UserError, match=message):
        make()
