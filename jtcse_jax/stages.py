"""The whole recipe: training runs in order, each starting from those before it.

Every stage has its own folder in the workdir. A second start skips what is finished and resumes
what is not; a stage that fails leaves the folders before it as they are.
"""

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from jax.experimental import multihost_utils

from jtcse_jax import exported, output, run_lock, saved_model
from jtcse_jax.architecture import check_fields
from jtcse_jax.card import read_card
from jtcse_jax.config import Config
from jtcse_jax.data.sources import open_source
from jtcse_jax.distributed import is_primary, say
from jtcse_jax.encoder import SentenceEncoder
from jtcse_jax.errors import UserError, writing
from jtcse_jax.evaluation.development import Development
from jtcse_jax.evaluation.sts import PROTOCOL, StsTask, evaluate_sts, load_sts
from jtcse_jax.stage_scores import stage_row, warning
from jtcse_jax.start import check_config
from jtcse_jax.trainer import train
from jtcse_jax.user_path import user_path

FINISHED = "finished.json"  # in a stage's folder: its row of the table
MODEL, SUPERSEDED, FROM = saved_model.PIPELINE_MODEL, "superseded", "from.txt"


@dataclass(frozen=True)
class Pipeline:
    """Trains sentence encoders in stages, evaluates each and exports the last."""

    workdir: str = "runs/pipeline"
    """Holds a folder for each stage, and the exported `model`; a second start goes on."""
    stages: dict[str, Config] = field(default_factory=dict)
    """Runs by name, in order. In model.towers and objective.teacher the name of an earlier stage
    (or NAME#K, its tower K) means what that stage trained. Their own `workdir` is not used."""
    source: str = ""
    """Text of every stage that names none itself."""
    dev: str | None = None
    """Development set of every stage that names none itself; mlm has none."""
    sts: str | None = None
    """Folder of the seven STS tasks, scored after every stage but mlm."""
    seed: int = 0
    """Number of the repetition: 1000 times it is added to the seed of every stage."""
    cache_dir: str | None = None
    """Where tokenised text is kept, for every stage."""
    from_stage: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Train again from this stage on; what it and later ones had is moved to `superseded/`. The
    same command started again goes on, until all is finished."""

    def __post_init__(self):
        check_fields("", self)
        for name in self.stages:
            if not name.isidentifier() or name in (MODEL, SUPERSEDED):
                raise UserError(f"stages: {name!r} cannot name a folder here: choose a plain word.")
        if self.from_stage is not None and self.from_stage not in self.stages:
            raise UserError(
                f"--from {self.from_stage}: choose one of the stages {', '.join(self.stages)}."
            )


def run(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Runs what is not finished; returns a row for each stage (see `stage_row`).

    Raises UserError for what the user can mend, with the stage's name; texts, dev sets and tasks
    are looked at before the first stage.
    """
    if not pipeline.stages:
        raise UserError("stages is empty: name a config file, --config configs/pipeline_*.py.")
    workdir = _workdir(pipeline)
    with run_lock.hold(workdir) if is_primary() else contextlib.nullcontext():
        return _run(pipeline, workdir)


def _run(pipeline: Pipeline, workdir: Path) -> list[dict[str, Any]]:
    configs = stage_configs(pipeline)
    tasks = _load_tasks(pipeline.sts) if pipeline.sts else []
    for name, config in configs.items():
        _check_inputs(name, config)
    if is_primary():
        _set_aside_once(workdir, list(configs), pipeline.from_stage)
    _wait_for_all("set aside")
    # Decided by every process before any of them writes.
    rows = {name: _read_finished(Path(config.workdir)) for name, config in configs.items()}
    _wait_for_all("looked")
    for name, config in configs.items():
        try:
            if rows[name] is None:
                say(f"--- stage {name}")
                train(config)
                rows[name] = _finish(name, config, tasks)
                if is_primary() and (reason := warning(name, configs, rows)):
                    say(f"warning: {reason}")
            else:
                say(f"--- stage {name}: finished before")
                _check_finished(name, config, rows[name])
                if tasks and config.objective.name != "mlm" and not rows[name]["sts"]:
                    rows[name] = _finish(name, config, tasks)
        except UserError as error:
            # Of its own kind, which decides whether a launcher starts the pipeline again.
            raise type(error)(f"stage {name}: {error}") from error
    _export(workdir, Path(configs[name].workdir), rows[name])
    if is_primary():
        (workdir / FROM).unlink(missing_ok=True)
    _wait_for_all("exported")
    return list(rows.values())


def stage_configs(pipeline: Pipeline) -> dict[str, Config]:
    """Each stage's own config, with the pipeline's fields and earlier stages' folders filled in.

    Raises UserError for a stage that names a later stage, or itself.
    """
    workdir = _workdir(pipeline)
    configs: dict[str, Config] = {}

    def folder_of(name: str) -> str:
        stage, mark, number = name.partition("#")
        if stage in configs:
            return f"{workdir / stage}{mark}{number}"
        if stage in pipeline.stages:
            raise UserError(f"stages: {name} is used before it is trained: change their order.")
        return name

    for name, config in pipeline.stages.items():
        is_mlm = config.objective.name == "mlm"
        data = dataclasses.replace(
            config.data,
            source=config.data.source or pipeline.source,
            dev=config.data.dev or (None if is_mlm else pipeline.dev),
            cache_dir=pipeline.cache_dir or config.data.cache_dir,
        )
        teacher = config.objective.teacher
        configs[name] = dataclasses.replace(
            config,
            workdir=str(workdir / name),
            seed=config.seed + 1000 * pipeline.seed,
            data=data,
            model=dataclasses.replace(
                config.model, towers=tuple(map(folder_of, config.model.towers))
            ),
            objective=dataclasses.replace(config.objective, teacher=teacher and folder_of(teacher)),
        )
    return configs


def set_aside(workdir: Path, stages: list[str], first: str) -> None:
    """Moves the folders of `first` and later stages, and the model, to `superseded/N`."""
    # The last first: a kill in between leaves no stage that was trained from one that is gone.
    moving = [MODEL, *reversed(stages[stages.index(first) :])]
    present = [workdir / name for name in moving if (workdir / name).exists()]
    if not present:
        return
    numbers = [int(path.name) for path in (workdir / SUPERSEDED).glob("*") if path.name.isdigit()]
    target = workdir / SUPERSEDED / str(max(numbers, default=-1) + 1)
    target.mkdir(parents=True)
    for folder in present:
        folder.rename(target / folder.name)
    say(f"{', '.join(folder.name for folder in present)} moved to {target}")


def _workdir(pipeline: Pipeline) -> Path:
    """Absolute: stages name each other's folders, however the workdir is spelled."""
    return user_path(pipeline.workdir).resolve()


def _load_tasks(folder: str) -> list[StsTask]:
    """All of them: averages over different tasks must not stand in one table."""
    tasks, missing = load_sts(folder)
    if missing:
        reasons = "; ".join(f"{task}: {reason}" for task, reason in missing.items())
        raise UserError(f"--sts {folder}: not complete ({reasons}): add what is missing.")
    return tasks


def _check_inputs(name: str, config: Config) -> None:
    """Raises UserError now for what would stop a later stage hours from now."""
    try:
        if not config.data.source:
            raise UserError("it has no text: give --source sentences.txt.")
        views = open_source(config.data.source).views
        if views == 2 and config.data.pairs in ("adjacent", "repeat"):
            raise UserError(
                f'data.pairs = "{config.data.pairs}" is for single sentences, and '
                f'{config.data.source} holds pairs: use "same".'
            )
        if config.data.dev:
            Development(config.data.dev)
    except UserError as error:
        raise UserError(f"stage {name}: {error}") from error


def _set_aside_once(workdir: Path, stages: list[str], first: str | None) -> None:
    """Does what `--from` asks, and remembers it until the pipeline is finished."""
    marker = workdir / FROM
    if first is None or (marker.is_file() and marker.read_text().strip() == first):
        return
    set_aside(workdir, stages, first)
    workdir.mkdir(parents=True, exist_ok=True)
    with writing(marker):
        marker.write_text(first + "\n")


def _check_finished(name: str, config: Config, row: dict[str, Any]) -> None:
    """Raises UserError where a stage was finished with another config or length."""
    check_config(Path(config.workdir), config)
    planned = _planned(config)
    if row["planned"] != planned:
        raise UserError(
            f"finished with {row['planned']} and now {planned} are asked: train it and what "
            f"follows again with --from {name}."
        )


def _planned(config: Config) -> str:
    return f"{config.max_steps} steps" if config.max_steps else f"{config.epochs} epoch(s)"


def _read_finished(folder: Path) -> dict[str, Any] | None:
    path = folder / FINISHED
    if not path.is_file():
        return None
    row = saved_model.read_json(path, dict)
    if not {"planned", "step", "seconds", "sentences_per_second", "dev", "sts"} <= row.keys():
        raise UserError(f"{path}: not of this version: delete it, and the stage is scored again.")
    return row


def _finish(name: str, config: Config, tasks: list[StsTask]) -> dict[str, Any]:
    """Evaluates what a stage trained and marks the stage as finished."""
    scores, taken = {}, None
    if tasks and config.objective.name != "mlm":
        # On every process: reading a checkpoint is a joint step of all.
        encoder = SentenceEncoder.load(config.workdir)
        taken = encoder.members[0].model.step
        found = evaluate_sts(encoder.encode, tasks)
        scores = {task: 100 * score.spearman for task, score in found.items()}
    # What every process knows; the primary reads the rest in the log.
    row = {"stage": name, "planned": _planned(config), "step": taken, "sts": scores}
    if is_primary():
        row |= stage_row(name, config, taken)
        output.replace(Path(config.workdir) / FINISHED, json.dumps(row, indent=2) + "\n")
    _wait_for_all(f"finished {name}")
    return row


def _export(workdir: Path, last: Path, row: dict[str, Any]) -> None:
    """Writes the model of the last stage with its scores, unless it is there."""
    folder = workdir / MODEL
    present = folder.exists()
    _wait_for_all("looked for the model")
    if not present:
        model = saved_model.load(last)
        card = read_card(model)
        if row["sts"] and row["step"] != model.step:
            taken = f"step {row['step']}, the model is {model.source}"
            say(f"no scores on the card: they are of {taken}")
        elif row["sts"]:
            rounded = {task: round(score, 2) for task, score in row["sts"].items()}
            card = dataclasses.replace(card, scores={"protocol": PROTOCOL, "spearman": rounded})
        if is_primary():
            exported.export(model, folder, card)
    say(f"model: {folder}")


def _wait_for_all(what: str) -> None:
    multihost_utils.sync_global_devices(f"pipeline: {what}")
