"""The versions and devices that a run or a score was computed with."""

import contextlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

from jtcse_jax.errors import writing
from jtcse_jax.version import __version__

FILE = "environment.jsonl"
LIBRARIES = ("jax", "flax", "optax", "transformers", "tokenizers", "numpy", "scipy")
OPTIONAL = ("scikit-learn", "mteb", "sentence-transformers", "torch")  # recorded if installed


def environment() -> dict[str, str]:
    """Versions of the libraries and of Python, and jax's devices of all processes."""
    versions = {library: version(library) for library in LIBRARIES}
    for library in OPTIONAL:
        with contextlib.suppress(PackageNotFoundError):
            versions[library] = version(library)
    kind = jax.devices()[0].device_kind
    return {
        "jtcse_jax": __version__,
        "python": platform.python_version(),
        **versions,
        "devices": f"{jax.device_count()} x {kind}, {jax.process_count()} process(es)",
    }


def record(workdir: Path, step: int) -> None:
    """Adds a line to `environment.jsonl`: the environment of the run from this step on.

    Raises UserError if the file cannot be written.
    """
    line = json.dumps({"step": step, **environment()})
    with writing(workdir / FILE), (workdir / FILE).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
