"""Paths as users write them."""

import os
from pathlib import Path

from jtcse_jax.errors import UserError


def user_path(name: str | os.PathLike[str]) -> Path:
    """The path with its leading `~` replaced; that of an unknown user stays, and is not found.

    Raises UserError where the system cannot even tell whether it is there: a name too long, links
    in a circle, a folder that may not be entered. Python's own `is_file` and `exists` raise there.
    """
    path = Path(os.path.expanduser(name))
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: this path cannot be used ({reason}); name another.") from error
    return path
