"""Paths as users write them."""

import os
from pathlib import Path


def user_path(name: str | os.PathLike[str]) -> Path:
    """The path with its leading `~` replaced; that of an unknown user stays, and is not found."""
    return Path(os.path.expanduser(name))
