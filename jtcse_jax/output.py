"""Files that a command writes at its end: looked at before the work, replaced whole after it."""

from pathlib import Path

from jtcse_jax.errors import UserError, writing
from jtcse_jax.user_path import user_path


def check_replaceable(name: str) -> Path:
    """The path of `--output NAME`, which may be there already.

    Raises UserError for a folder, and for a file in a folder that is not there.
    """
    path = user_path(name)
    if path.is_dir():
        raise UserError(f"--output {name}: a folder; name a file in it.")
    if not path.parent.is_dir():
        raise UserError(f"--output {name}: there is no such folder; make it first.")
    return path


def replace(path: Path, text: str) -> None:
    """Writes a file so that it is the old or the new one, never half of it.

    Raises UserError where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    with writing(path):
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
