"""Finds Hugging Face folders by name, reads their tensors, never a pickle."""

import importlib.util
import os
import shlex
from pathlib import Path

import huggingface_hub
import numpy as np
from safetensors import SafetensorError, safe_open

from jtcse_jax.errors import UserError
from jtcse_jax.runtime.files import read_json

PACKAGE = "package:"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def find_folder(name: str) -> Path:
    """The local folder `name`, else the downloaded (or already cached) hub repository `name`.

    `package:NAME/FOLDER` is a folder inside an installed Python package. Raises UserError if there
    is no such folder, package or repository.
    """
    if name.startswith(PACKAGE):
        return _find_in_package(name)
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        return Path(folder)
    if os.path.exists(folder) or name.startswith(("/", "~", ".")) or name.count("/") > 1:
        what = "is a file" if os.path.exists(folder) else "does not exist"
        raise UserError(f"{name} {what}: give the folder of a model or of a run.")
    try:
        patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # many types: bad name, unknown, gated, offline, timeout ...
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name} is neither a folder nor a reachable Hugging Face repository: correct the "
            "name, train it first if it is a run of yours, or download it and give its folder "
            f"({type(error).__name__}: {reason})."
        ) from error


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder's `model.safetensors`, whole or sharded, by the file's own names.

    float16 and bfloat16 are widened to float32. Raises UserError for a damaged or absent file, a
    shard outside the folder, other number formats, and weights in a pickle.
    """
    tensors = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():
                    dtype = file.get_slice(name).get_dtype()
                    if dtype in ("F32", "F16", "BF16"):
                        tensors[name] = file.get_tensor(name).astype(np.float32, copy=False)
                    elif not name.endswith(("_ids", "num_batches_tracked")):
                        raise UserError(
                            f"{path}: {name} is {dtype}: only float32, float16 and bfloat16 "
                            "weights are read."
                        )
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: damaged, cut short or absent ({error}): fetch it again."
            ) from error
    return tensors


def lies_in(path: str | Path, folder: str | Path) -> bool:
    """Whether a path, with its links resolved, is the folder or inside it."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # a path with a zero byte
        return False


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        names = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"{folder / INDEX}: no weight_map of file names.")
        return [_shard(folder, name) for name in sorted(set(names))]
    if (folder / "pytorch_model.bin").is_file():
        source, target = (
            shlex.quote(str(folder / name)) for name in ("pytorch_model.bin", WEIGHTS)
        )
        raise UserError(
            f"{folder}: has only pytorch_model.bin, a pickle, which is not opened: convert it once "
            'where torch is installed: python -c "import sys, torch, safetensors.torch as s; '
            "t = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
            "s.save_file({k: v.contiguous().clone() for k, v in t.items()}, sys.argv[2], "
            f"{{'format': 'pt'}})\" {source} {target}"
        )
    raise UserError(
        f"{folder}: no {WEIGHTS} (if the repository has only pytorch_model.bin: save it once where "
        "torch is installed, with AutoModel.from_pretrained(NAME).save_pretrained(FOLDER))."
    )


def _shard(folder: Path, name: str) -> Path:
    """A file in the folder itself: the name is untrusted and must not lead out of the folder."""
    # In the hub's cache a snapshot's files are links to the blobs of its repository.
    homes = (folder, folder.absolute().parent.parent / "blobs")
    if Path(name).name != name or not any(lies_in(folder / name, home) for home in homes):
        raise UserError(f"{folder / INDEX}: {name!r:.200} is not a file of this folder.")
    return folder / name


def _find_in_package(name: str) -> Path:
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    # Located without an import: such a package may import torch.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{name}: no Python package {package} is installed: "
            f"pip install --no-deps {package.replace('_', '-')}"
        )
    folder = Path(spec.submodule_search_locations[0]) / inside
    if ".." in Path(inside).parts or Path(inside).is_absolute() or not folder.is_dir():
        raise UserError(f"{name}: the package has no folder {inside!r}.")
    return folder
