"""Reads configs from Python files and the command line, and writes them as JSON."""

import argparse
import dataclasses
import json
import runpy
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from jtcse_jax.config import Config
from jtcse_jax.errors import UserError
from jtcse_jax.pipeline_config import Pipeline
from jtcse_jax.user_path import user_path

T = TypeVar("T")
# In an installed package the recipes lie in it, in a checkout beside it.
_INSTALLED = Path(__file__).with_name("configs")
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "configs"


def parse(kind: type[T], prog: str, arguments: Sequence[str] | None = None) -> T:
    """Parses `--config FILE [--any.field VALUE ...]` as a `kind`; FILE as in `find_config`.

    Raises UserError for a config file that cannot be loaded. If an override is wrong, the parser
    exits and names the field, the value and the allowed values.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    known, overrides = first.parse_known_args(arguments)
    if any(word.partition("=")[0] == "--model" for word in overrides):
        option = "--model.towers" if kind is Config else "--stages.STAGE.model.towers"
        raise UserError(f"--model: name the start of each tower, with {option}.")
    default = load_config_file(find_config(known.config), kind) if known.config else kind()
    description = (
        f"{kind.__doc__} Give --config FILE first, then any field as an override; with FILE, "
        "--help shows the values and stages of the file."
    )
    return tyro.cli(
        kind,
        prog=f"python -m {prog}",
        default=default,
        args=overrides,
        description=description,
    )


def find_config(name: str) -> Path:
    """The path of a config: a file of the user, or by its bare name a recipe of this project."""
    path, recipe = user_path(name), CONFIGS / f"{name}.py"
    return recipe if not path.exists() and "/" not in name and recipe.is_file() else path


def load_config_file(path: Path, kind: type[T] = Config) -> T:
    """Returns the `config` of a Python file; UserError if it has none of this kind."""
    if not path.is_file():
        recipes = ", ".join(sorted(each.stem for each in CONFIGS.glob("*.py")))
        raise UserError(f"--config {path}: no such file. Recipes by name: {recipes}.")
    _check_text(path)
    try:
        config = runpy.run_path(str(path)).get("config")
    except UserError as error:
        raise UserError(f"{path}{_line(error, path)}: {error}") from error
    except (Exception, SystemExit) as error:
        reason = str(error).partition("\n")[0]
        message = f"{type(error).__name__}: {reason}"
        raise UserError(f"{path}{_line(error, path)}: {message}") from error
    if isinstance(config, kind):
        return config
    if isinstance(config, Config | Pipeline):
        command = "train" if isinstance(config, Config) else "pipeline"
        raise UserError(f"{path} is a config for another command: python -m jtcse_jax.{command}.")
    raise UserError(f"{path}: has no `config = {kind.__name__}(...)`; see the files in configs/.")


def _check_text(path: Path) -> None:
    """Raises UserError for files that Python would run but people cannot read: bytecode, zips."""
    try:
        is_text = "\0" not in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        is_text = False
    if not is_text:
        raise UserError(f"--config {path}: not Python text in UTF-8; see the files in configs/.")


def _line(error: BaseException, path: Path) -> str:
    """`:LINE` of the config file where an error was raised, or "" if it has no such line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""


def to_json(config: Config) -> str:
    """The config as indented JSON, as it is stored in the workdir."""
    return json.dumps(dataclasses.asdict(config), indent=2)
