"""Every command of docs/ is one that its program accepts; two recipes are run, small."""

import dataclasses
import json
import re
import shlex

import jax
import numpy as np
import pytest
import tyro
from processes import ROOT
from runs import tiny_config, write_text
from tiny_models import write_senteval

from jtcse_jax import augment, config_file, encode, evaluate, export, pairs, search
from jtcse_jax.architecture import Architecture
from jtcse_jax.config import Config
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.pipeline_config import Pipeline
from jtcse_jax.report import __main__ as report
from jtcse_jax.training import stages
from jtcse_jax.training.stages import stage_configs
from jtcse_jax.training.trainer import train

RECIPES, EVALUATION = (
    (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("recipes.md", "evaluation.md")
)
COMMANDS = [
    command.replace("\\\n", " ").strip()
    for command in re.findall(
        r"^    (python -m (?:.*\\\n)*.*)$", RECIPES + EVALUATION, flags=re.MULTILINE
    )
]


def test_the_page_has_its_recipes():
    assert re.findall(r"^## (.*)$", RECIPES, flags=re.MULTILINE)[:5] == [
        "Own language, from scratch",
        "Own domain, existing BERT",
        "A published encoder, made better",
        "Paper reproduction",
        "Distil for serving",
    ]
    assert len(COMMANDS) >= 14


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command)[2:]
    if program == "jtcse_jax.train":
        config = config_file.parse(Config, program, arguments)
        columns = {"TEXT": 0, "triples.tsv": 3, "groups.csv": 2 + config.data.positives}
        assert len(config.data.columns) == columns[config.data.source]
    elif program == "jtcse_jax.pipeline":
        pipeline = config_file.parse(Pipeline, program, arguments)
        for config in stage_configs(pipeline).values():
            in_pairs = config.data.source.endswith(".tsv")
            assert config.data.source == "TEXT" or in_pairs
            assert not (in_pairs and config.data.pairs == "repeat"), "words of pairs"
    elif program == "jtcse_jax.augment":
        assert tyro.cli(
            augment.RepeatWords | augment.BackTranslate | augment.MineNegatives, args=arguments
        )
    else:
        module = {
            "jtcse_jax.evaluate": evaluate,
            "jtcse_jax.encode": encode,
            "jtcse_jax.export": export,
            "jtcse_jax.pairs": pairs,
            "jtcse_jax.report": report,
            "jtcse_jax.search": search,
        }[program]
        assert tyro.cli(module.Arguments, args=arguments)


def shrunk(config: Config, **fields) -> Config:
    """One step of four sentences, two layers, 16 numbers where the recipe has hundreds."""
    scratch = Architecture(
        vocab_size=200,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_positions=128,
    )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, scratch=scratch, **fields),
        data=dataclasses.replace(config.data, batch_size=4),
        max_steps=1,
        log_every=1,
    )


@pytest.mark.slow
def test_own_language_then_own_domain_then_distilled_for_serving(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train", lambda config: train(config, devices=jax.devices()[:1]))
    pipeline = config_file.load_config_file(ROOT / "configs" / "pipeline_scratch.py", Pipeline)
    pipeline = dataclasses.replace(
        pipeline,
        workdir=str(tmp_path / "language"),
        source=str(write_text(tmp_path / "text.txt")),
        cache_dir=str(tmp_path / "cache"),
        stages={name: shrunk(config) for name, config in pipeline.stages.items()},
    )
    rows = stages.run(pipeline)
    assert [row["stage"] for row in rows] == list(pipeline.stages)
    with monkeypatch.context() as once:
        once.setattr(stages, "train", None)
        once.setattr(stages.exported, "export", None)
        assert stages.run(pipeline) == rows
    model = f"{pipeline.workdir}/model"

    domain = config_file.load_config_file(ROOT / "configs" / "mlm_small.py")
    domain = shrunk(
        dataclasses.replace(
            domain,
            workdir=str(tmp_path / "domain"),
            data=dataclasses.replace(
                tiny_config(tmp_path).data, pairs="none", max_len=32, row_length=None, dev=None
            ),
        ),
        towers=(model,),
    )
    train(domain, devices=jax.devices()[:1])

    members = [
        {"model": f"{pipeline.workdir}/jtcse", "weight": 0.3},
        {"model": "domain", "weight": 0.7},
    ]
    (tmp_path / "uc.json").write_text(json.dumps({"members": members}))
    write_senteval(tmp_path / "STS")
    result = evaluate.evaluate(
        evaluate.Arguments(model=str(tmp_path / "uc.json"), sts=str(tmp_path / "STS"))
    )
    assert [member["towers"] for member in result["members"]] == [2, 1]
    student = config_file.load_config_file(ROOT / "configs" / "distill_bert_base.py")
    student = shrunk(student, towers=(f"{pipeline.workdir}/jtcse#0",), compute_dtype="float32")
    student = dataclasses.replace(
        student,
        workdir=str(tmp_path / "student"),
        data=dataclasses.replace(
            student.data, source=pipeline.source, cache_dir=pipeline.cache_dir
        ),
        objective=dataclasses.replace(student.objective, teacher=str(tmp_path / "uc.json")),
    )
    train(student, devices=jax.devices()[:1])
    served = tmp_path / "served"
    export.export(export.Arguments(model=student.workdir, output=str(served)))
    sentences = ["The cat sees someone at night.", "A dog."]
    np.testing.assert_array_equal(
        SentenceEncoder.load(served).encode(sentences),
        SentenceEncoder.load(student.workdir).encode(sentences),
    )
