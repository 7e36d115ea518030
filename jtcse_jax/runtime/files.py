"""Files that a command writes at its end: checked before the work, replaced atomically after it."""

from pathlib import Path

from jtcse_jax.errors import UserError, writing
from jtcse_jax.user_path import user_path


def check_replaceable(name: str) -> Path:
    """Returns the path of `--output NAME`; the file may exist.

    Raises UserError if it is a folder, or if its folder does not exist.
    """
    path = user_path(name)
    if path.is_dir():
        raise UserError(f"--output {name} is a folder; give the name of a file.")
    if not path.parent.is_dir():
        raise UserError(f"--output {name}: its folder does not exist; create it first.")
    return path


def replace(path: Path, text: str) -> None:
    """Writes a file so that it has the old or the new content, never a part of it.

    Raises UserError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    with writing(path):
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
