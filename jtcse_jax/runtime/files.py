"""Small files: read as JSON, replaced atomically, and the names of outputs checked before work."""

import json
import os
from pathlib import Path
from typing import Any

from jtcse_jax.errors import UserError, writing
from jtcse_jax.user_path import user_path


def check_replaceable(name: str) -> Path:
    """Returns the path of `--output NAME`; the file may exist.

    Raises UserError if it is a folder, or if its folder does not exist or cannot be written.
    """
    path = user_path(name)
    if path.is_dir():
        raise UserError(f"--output {name} is a folder; give the name of a file.")
    if not path.parent.is_dir():
        raise UserError(f"--output {name}: its folder does not exist; create it first.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--output {name}: its folder cannot be written; choose another place.")
    return path


def check_new(name: str) -> Path:
    """Like `check_replaceable`, but the file must not exist."""
    path = check_replaceable(name)
    if path.exists():
        raise UserError(f"--output {name} exists already; choose a new file.")
    return path


def replace(path: Path, text: str) -> None:
    """Writes a file so that it has the old or the new content, never a part of it.

    Raises UserError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    with writing(path):
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def read_json(path: Path, kind: type = dict, *, advice: str = "restore or delete it") -> Any:
    """The content of a JSON file.

    Raises UserError, which ends with `advice`, if it is absent or not JSON of type `kind` (dict or
    list).
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"a {type(content).__name__} instead of a {kind.__name__}")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {advice}.") from error
    except (ValueError, RecursionError) as error:  # endless brackets are a RecursionError
        raise UserError(f"{path} is not valid JSON ({error}): {advice}.") from error
    return content
