"""The manifest of a checkpoint folder: size and sha256 of every file, and what was saved.

Orbax commits a checkpoint atomically but does not check its content. Without the manifest, a bit
that flips on disk would be restored silently as a wrong weight.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jtcse_jax.errors import UserError
from jtcse_jax.runtime.files import read_json

NAME, CORRUPT = "manifest.json", "corrupt"
# Orbax rewrites the last two while it commits, after the manifest; a restore does not read them.
UNHASHED = frozenset({NAME, "_CHECKPOINT_METADATA", "commit_success.txt"})


def write(folder: Path, contents: dict[str, Any]) -> None:
    """Writes `folder/manifest.json`: `contents`, every file's size and sha256, and its own digest.

    Atomic: the file appears complete or not at all.

    Raises:
        OSError: a file cannot be read, or the manifest cannot be written (disk full).
    """
    files = {name: [path.stat().st_size, _sha256(path)] for name, path in _files(folder).items()}
    body = {**contents, "files": files}
    unfinished = folder / f"{NAME}.unfinished"
    with unfinished.open("w") as file:
        json.dump({**body, "digest": _digest(body)}, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / NAME)


def read(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest as written, or None if it is absent, unreadable or altered."""
    try:
        body = read_json(folder / NAME)
    except UserError:
        return None
    return body if body.pop("digest", None) == _digest(body) else None


def problem(folder: Path) -> str | None:
    """Returns what is wrong with the first damaged file of `folder`, or None if none is damaged.

    Checks the manifest, then missing and additional files, then sizes, then sha256 sums.
    """
    manifest = read(folder)
    if manifest is None:
        return f"{NAME} is {'altered' if (folder / NAME).exists() else 'missing'}"
    try:
        present = _files(folder)
        # Reading a pipe, or a link to a device, might never end.
        for name, path in present.items():
            if path.is_symlink() or not path.is_file():
                return f"{name} is not an ordinary file"
        for name in sorted(present.keys() ^ manifest["files"].keys()):
            return f"{name} is {'missing' if name in manifest['files'] else 'not in the manifest'}"
        sizes = {name: path.stat().st_size for name, path in present.items()}
        for name, (size, _) in manifest["files"].items():
            if sizes[name] != size:
                return f"{name} has {sizes[name]} bytes, but {size} were written"
        for name, (_, sha256) in manifest["files"].items():
            if _sha256(present[name]) != sha256:
                return f"{name} has changed since it was written (its sha256 differs)"
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"
    return None


def set_aside(folder: Path) -> str:
    """Moves a damaged folder into `corrupt/` beside it; returns the outcome as text."""
    target = folder.parent / CORRUPT / folder.name
    try:
        target.parent.mkdir(exist_ok=True)
        while target.exists():
            target = target.with_name(f"{target.name}-again")
        folder.rename(target)
    except OSError as error:
        return f"left there ({error.strerror})"
    return f"moved to {target}"


def misfits(folder: Path, wanted: dict[str, dict[str, str]]) -> list[str]:
    """Returns a line for every leaf of `wanted` that differs from the manifest's `leaves`.

    `wanted` maps item -> leaf path -> dtype and shape, as `described` returns it.
    """
    saved = (read(folder) or {}).get("leaves", {})
    lines = []
    for item, leaves in wanted.items():
        there = saved.get(item, {})
        for name in dict.fromkeys([*there, *leaves]):
            was, want = there.get(name, "nothing"), leaves.get(name, "nothing")
            if was != want:
                lines.append(f"{item} {name}: saved {was}, wanted {want}")
    return lines


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path, so that the files do not depend on the classes of the pytree's nodes."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
    if len(named) != len(paths):
        raise ValueError("two leaves of one checkpoint item have the same path")
    return named


def described(items: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """`float32[2, 3]` for every leaf: dtype and shape, which a restored leaf must match."""
    return {
        item: {name: f"{np.dtype(x.dtype).name}{list(x.shape)}" for name, x in leaves.items()}
        for item, leaves in items.items()
    }


def _files(folder: Path) -> dict[str, Path]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {
        name: p
        for name, p in paths.items()
        if name not in UNHASHED and (p.is_symlink() or not p.is_dir())
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
