"""The facts about a model that its model card prints, other than the weights.

An exported folder keeps all of them in `jtcse_card.json`, so that exporting it again writes the
same folder.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from jtcse_jax.config import SCRATCH
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.files import read_json
from jtcse_jax.store import hf_files
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.store.workdir import CHECKPOINTS, CONFIG
from jtcse_jax.user_path import user_path

FILE = "jtcse_card.json"
LOCAL_FIELDS = ("workdir", "cache_dir")  # of a train config: paths of one machine, left out


@dataclass(frozen=True, kw_only=True)
class Card:
    """The contents of a model card."""

    name: str = ""  #: on the hub, USER/NAME
    license: str = ""  #: the hub's identifier, such as apache-2.0
    language: list[str] = field(default_factory=list)  #: codes, such as en
    base_models: list[str] = field(default_factory=list)  #: hub names of the start models
    normalize: bool = False  #: sentence-transformers scales the vectors to length 1
    prompts: dict[str, str] = field(default_factory=dict)  #: texts put before a sentence, by name
    step: int | None = None  #: step of the training run
    metrics: dict[str, float] = field(default_factory=dict)  #: measured in training at this step
    train_config: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)  #: in the form `evaluate` writes


def read_card(model: SavedModel) -> Card:
    """Returns what is known of a loaded model; local paths are shortened to their last part.

    A workdir has its training config and the metrics saved with the step, an exported folder its
    `jtcse_card.json`, a sentence-transformers folder its normalisation and prompts. Raises
    UserError if one of these files is damaged.
    """
    folder = model.folder
    if folder is None:
        return Card()
    if (folder / FILE).is_file():
        return _from_json(folder / FILE)
    if (folder / CHECKPOINTS).is_dir():
        return _of_workdir(folder, model.step)
    own_name = [model.source] if _is_hub_name(model.source) else []
    return Card(base_models=own_name, **_sentence_transformers_settings(folder))


def read_scores(path: str | Path) -> dict[str, Any]:
    """Returns the STS scores of a file written by `evaluate --output`.

    Their conditions are included, paths of models are not. Raises UserError for any other file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--scores {path}: no such file; `evaluate --output` writes one.")
    content = read_json(path)
    scores = content.get("sts")
    tasks = scores.get("spearman") if isinstance(scores, dict) else None
    if not isinstance(tasks, dict) or not all(
        isinstance(score, int | float) for score in tasks.values()
    ):
        raise UserError(f"--scores {path} has no STS scores as `evaluate --output` writes them.")
    members = content.get("members", [])
    if not isinstance(members, list) or not all(isinstance(one, dict) for one in members):
        raise UserError(f"--scores {path}: `members` is not as `evaluate --output` writes it.")
    members = [{key: value for key, value in one.items() if key != "model"} for one in members]
    return scores | {"members": members, "environment": content.get("environment", {})}


def _from_json(path: Path) -> Card:
    content, empty = read_json(path), dataclasses.asdict(Card(step=0))
    wrong = [
        name
        for name, value in content.items()
        if not isinstance(value, type(empty.get(name))) and (name, value) != ("step", None)
    ]
    if wrong:
        raise UserError(f"{path} is of another version ({', '.join(wrong)}): delete it.")
    return Card(**content)


def _of_workdir(workdir: Path, step: int | None) -> Card:
    config = read_json(workdir / CONFIG) if (workdir / CONFIG).is_file() else {}
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        metrics = {} if step is None else checkpoints.metrics(step)
    return Card(
        base_models=sorted(_base_models(config, {workdir.resolve()})),
        step=step,
        metrics=metrics,
        train_config=_public(config),
    )


def _base_models(config: dict[str, Any], seen: set[Path]) -> set[str]:
    """Hub names that the towers of a run come from, followed through workdirs that still exist."""
    found = set()
    workdirs = Path(config.get("workdir", "")).parts[:1]
    for name in config.get("model", {}).get("towers", []):
        folder = user_path(name.partition("#")[0])
        if not folder.is_dir():
            # For a run in `runs/b`, `runs/a` is a deleted workdir, not a user of the hub.
            local = name == SCRATCH or folder.parts[:1] == workdirs
            found |= {name} if not local and _is_hub_name(name) else set()
        elif folder.resolve() in seen:
            continue
        elif (folder / FILE).is_file():
            found |= set(_from_json(folder / FILE).base_models)
        elif (folder / CONFIG).is_file():
            seen.add(folder.resolve())
            found |= _base_models(read_json(folder / CONFIG), seen)
    return found


def _is_hub_name(name: str) -> bool:
    """Whether a name can be a hub name; existing paths and `package:` names cannot."""
    if user_path(name).exists() or name.startswith(hf_files.PACKAGE):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _public(value: Any) -> Any:
    """A training config without paths of this machine."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items() if key not in LOCAL_FIELDS}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return Path(value).name
    return value


def _sentence_transformers_settings(folder: Path) -> dict[str, Any]:
    settings = {}
    if (folder / "modules.json").is_file():
        kinds = [module["type"] for module in read_json(folder / "modules.json", list)]
        settings["normalize"] = any(kind.endswith(".Normalize") for kind in kinds)
    path = folder / "config_sentence_transformers.json"
    if path.is_file():
        prompts = read_json(path).get("prompts") or {}
        settings["prompts"] = {name: text for name, text in prompts.items() if text}
    return settings
