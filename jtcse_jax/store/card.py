"""The facts about a model that its model card prints, other than the weights.

An exported folder keeps all of them in `jtcse_card.json`, so that exporting it again writes the
same folder.
"""

import contextlib
import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from jtcse_jax.config import SCRATCH
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.files import read_json
from jtcse_jax.store import hf_config, hf_files
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.store.workdir import CHECKPOINTS, CONFIG
from jtcse_jax.traits import TRAITS, Traits
from jtcse_jax.user_path import user_path

FILE = "jtcse_card.json"
LOCAL_FIELDS = ("workdir", "cache_dir")  # of a train config: paths of one machine, left out


@dataclass(frozen=True, kw_only=True)
class Card:
    """The contents of a model card."""

    name: str = ""  #: on the hub, USER/NAME
    license: str = ""  #: the hub's identifier, such as apache-2.0
    language: list[str] = field(default_factory=list)  #: codes, such as en
    base_models: list[str] = field(default_factory=list)  #: names of the start models
    datasets: list[str] = field(default_factory=list)  #: hub names of the training texts
    normalize: bool = False  #: sentence-transformers scales the vectors to length 1
    prompts: dict[str, str] = field(default_factory=dict)  #: texts put before a sentence, by name
    step: int | None = None  #: step of the training run
    metrics: dict[str, float] = field(default_factory=dict)  #: measured in training at this step
    train_config: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)  #: in the form `evaluate` writes


def read_card(model: SavedModel) -> Card:
    """Returns what is known of a loaded model; local paths are shortened to their last part.

    A workdir has its training config and the metrics saved with the step, an exported folder its
    `jtcse_card.json`. Scaling and prompts are those that the model is served with. Raises UserError
    if one of these files is damaged.
    """
    return dataclasses.replace(
        _known(model), normalize=model.serving.normalize, prompts=model.serving.prompts
    )


def _known(model: SavedModel) -> Card:
    folder = model.folder
    if folder is None:
        return Card()
    if (folder / FILE).is_file():
        return _from_json(folder / FILE)
    if (folder / CHECKPOINTS).is_dir():
        return _of_workdir(folder, model.step)
    own_name = [model.source] if _is_hub_name(model.source) else _own_name(folder)
    return Card(base_models=own_name)


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
    base_models, datasets = _origins(config, {workdir.resolve()})
    return Card(
        base_models=sorted(base_models),
        datasets=sorted(datasets),
        step=step,
        metrics=metrics,
        train_config=_public(of_this_run(config)),
    )


def _origins(config: dict[str, Any], seen: set[Path]) -> tuple[set[str], set[str]]:
    """Hub names of the models and data sets that a run comes from.

    Towers that start from workdirs are followed through these, as far as they still exist.
    """
    base_models, datasets = set(), set()
    source = str(config.get("data", {}).get("source", ""))
    if source.startswith("hub:"):
        datasets.add(source.split(":")[1])
    workdirs = Path(config.get("workdir", "")).parts[:1]
    for name in config.get("model", {}).get("towers", []):
        folder = _local_folder(name.partition("#")[0])
        if folder is None:
            # For a run in `runs/b`, `runs/a` is a deleted workdir, not a user of the hub.
            local = name == SCRATCH or user_path(name).parts[:1] == workdirs
            base_models |= {name} if not local and _is_hub_name(name) else set()
        elif folder.resolve() in seen:
            continue
        elif (folder / FILE).is_file():
            card = _from_json(folder / FILE)
            base_models |= set(card.base_models)
            datasets |= set(card.datasets)
        elif (folder / CONFIG).is_file():
            seen.add(folder.resolve())
            models, texts = _origins(read_json(folder / CONFIG), seen)
            base_models |= models
            datasets |= texts
        else:
            base_models |= set(_own_name(folder))
    return base_models, datasets


def _local_folder(name: str) -> Path | None:
    """The folder of a tower, if it is on this machine and not in the hub's cache."""
    with contextlib.suppress(UserError):
        if name.startswith(hf_files.PACKAGE) or user_path(name).is_dir():
            return hf_files.find_folder(name)
    return None


def _own_name(folder: Path) -> list[str]:
    """The name of a published model in a local folder, by its card's title or config; [] if none.

    A title without an owner, such as `# all-MiniLM-L6-v2`, gets the one that the card's code names.
    """
    found = []
    if (folder / "README.md").is_file():
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        for title in re.findall(r"^# +(.+?) *$", text, re.MULTILINE)[:1]:
            owned = set(re.findall(rf"""["']([\w.-]+/{re.escape(title)})["']""", text))
            found += [*owned, title] if len(owned) == 1 else [title]
    if (folder / hf_config.CONFIG).is_file():
        found.append(str(read_json(folder / hf_config.CONFIG).get("_name_or_path", "")))
    return [name for name in found if _is_hub_name(name)][:1]


def _is_hub_name(name: str) -> bool:
    """Whether a name can be a hub name; existing paths and `package:` names cannot."""
    if user_path(name).exists() or name.startswith(hf_files.PACKAGE):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def of_this_run(config: dict[str, Any]) -> dict[str, Any]:
    """A training config without the fields of `model` that it does not use.

    These are the shape of random towers, if none is random, and how they cross, if they do not.
    """
    model = config.get("model", {})
    unused = set()
    if SCRATCH not in model.get("towers", [SCRATCH]):
        unused.add("scratch")
    if not TRAITS.get(config.get("objective", {}).get("name"), Traits(crosses=True)).crosses:
        unused.add("cross")
    return config | {"model": {name: model[name] for name in model if name not in unused}}


def _public(value: Any) -> Any:
    """A training config without paths of this machine."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items() if key not in LOCAL_FIELDS}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~", "..")):
        return Path(value).name
    return value
