"""Every command of docs/recipes.md is one that its program accepts."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from jtcse_jax import augment, config_file, encode, evaluate, export
from jtcse_jax.config import Config
from jtcse_jax.stages import Pipeline, stage_configs

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
COMMANDS = [
    command.replace("\\\n", " ").strip()
    for command in re.findall(r"^    (python -m (?:.*\\\n)*.*)$", TEXT, flags=re.MULTILINE)
]


def test_the_page_has_its_recipes():
    assert re.findall(r"^## (.*)$", TEXT, flags=re.MULTILINE)[:4] == [
        "Own language, from scratch",
        "Own domain, existing BERT",
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
        assert config.data.source == "TEXT"
    elif program == "jtcse_jax.pipeline":
        pipeline = config_file.parse(Pipeline, program, arguments)
        for config in stage_configs(pipeline).values():
            pairs = config.data.source.endswith(".tsv")
            assert config.data.source == "TEXT" or pairs
            assert not (pairs and config.data.pairs == "repeat"), "words of pairs"
    elif program == "jtcse_jax.augment":
        assert tyro.cli(augment.RepeatWords | augment.BackTranslate, args=arguments)
    else:
        module = {"jtcse_jax.evaluate": evaluate, "jtcse_jax.encode": encode}.get(program, export)
        assert tyro.cli(module.Arguments, args=arguments)
