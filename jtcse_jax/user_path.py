"""Paths given by users."""

import os
from pathlib import Path

from jtcse_jax.errors import UserError


def user_path(name: str | os.PathLike[str]) -> Path:
    """The path with its leading `~` replaced; `~` of an unknown user stays as it is.

    Raises UserError if the system cannot tell whether the path exists: a name too long, a circle of
    links, a folder without permission. Python's `is_file` and `exists` raise OSError there.
    """
    path = Path(os.path.expanduser(name))
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: the path contains a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: this path cannot be used ({reason}); give another.") from error
    return path
