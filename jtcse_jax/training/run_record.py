"""What a workdir records of its run, so that a later start resumes this run and not another one."""

import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jtcse_jax.config import Config
from jtcse_jax.config_file import to_json
from jtcse_jax.errors import UserError
from jtcse_jax.runtime import files
from jtcse_jax.store import saved_model
from jtcse_jax.store.workdir import CONFIG
from jtcse_jax.user_path import user_path

FORCE = "continue with --force (for a pipeline's stage --stages.NAME.force)"
# The inputs whose content is recorded, in NAME.sha256, and the fields that name them.
INPUTS = {"text": "data.source", "dev": "data.dev", "teacher": "objective.teacher"}
# Fields that may differ when a run resumes; a change in any other field would make another run.
CHANGEABLE = {
    *("workdir", "epochs", "max_steps", "eval_every", "save_every", "log_every", "keep"),
    *("tower_devices", "fsdp_devices", "deterministic", "data.cache_dir", "wandb", "eval_layers"),
    *("profile", "peak_tflops", "not_finite", "force", "data.timeout", "patience"),
}

log = logging.getLogger(__name__)


def check_config(workdir: Path, config: Config) -> None:
    """Raises UserError if the run in a workdir was started with another config."""
    path = workdir / CONFIG
    if not path.is_file():
        return
    # A field that was added after the run had its default value in the run.
    defaults = flatten(json.loads(to_json(Config())))
    before = defaults | flatten(files.read_json(path))
    now = flatten(json.loads(to_json(config)))
    # Fields that the config leaves open were taken from the start model; compare these values.
    taken = saved_model.read_description(workdir)
    for fields, name in itertools.product((before, now), ("pooling", "serving_length")):
        if fields.get(f"model.{name}") is None:
            fields[f"model.{name}"] = taken.get(name)
    changed = [
        f"{name} (was {before.get(name)}, now {now.get(name)})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in CHANGEABLE
    ]
    if changed and not config.force:
        raise UserError(
            f"{workdir} holds a run with another config: {'; '.join(changed)}. Name a new "
            f"--workdir, restore the old values to resume, or {FORCE}."
        )
    for change in changed:
        log.warning("continuing with another config: %s", change)


def check_inputs(config: Config, fingerprints: dict[str, str]) -> None:
    """Raises UserError if the content of an input has changed since the run began.

    `fingerprints` has the keys of `INPUTS`: the same name may now have other content.
    """
    workdir = user_path(config.workdir)
    for name, fingerprint in fingerprints.items():
        path = workdir / f"{name}.sha256"
        if not path.is_file() or path.read_text().strip() == fingerprint:
            continue
        if not config.force:
            raise UserError(
                f"{INPUTS[name]} is not the one that the run in {workdir} began with, though its "
                f"name may be the same: restore it, name a new --workdir, or {FORCE}."
            )
        log.warning("continuing with another %s", INPUTS[name])


def record(workdir: Path, config: Config, fingerprints: dict[str, str]) -> None:
    """Writes the config and fingerprints of a run, for the checks of its next start.

    Call it when all of them are known to fit. Raises UserError if a file cannot be written.
    """
    files.replace(workdir / CONFIG, to_json(config) + "\n")
    for name, fingerprint in fingerprints.items():
        files.replace(workdir / f"{name}.sha256", fingerprint + "\n")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config as in JSON, by their whole names: `{"data.max_len": 64, ...}`."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
