"""Runs the stages of a recipe: training runs in order, each starting from earlier ones.

Every stage has its own folder in the workdir. A second start skips the finished stages and resumes
the unfinished one. If a stage fails, the folders of earlier stages stay as they are.
"""

import contextlib
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

from jax.experimental import multihost_utils

from jtcse_jax.config import SCRATCH, Config
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.views import check_batch, count_items, items_stride, views_per_item
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError, writing
from jtcse_jax.evaluation.development import Development
from jtcse_jax.evaluation.sts import PROTOCOL, StsTask, evaluate_sts, load_sts
from jtcse_jax.pipeline_config import MODEL, SUPERSEDED, Pipeline
from jtcse_jax.runtime import files, run_lock
from jtcse_jax.runtime.distributed import is_primary, say
from jtcse_jax.store import exported, hf_config, saved_model
from jtcse_jax.store.card import read_card
from jtcse_jax.store.ensemble import split_sum
from jtcse_jax.store.workdir import EXPORTED, FINISHED, FROM
from jtcse_jax.training.run_record import check_config
from jtcse_jax.training.stage_progress import StageProgress
from jtcse_jax.training.stage_scores import stage_row, warning
from jtcse_jax.training.trainer import train
from jtcse_jax.user_path import user_path


def run(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Runs the unfinished stages; returns a row for each stage (see `stage_row`).

    Texts, dev sets and tasks are checked before the first stage. Raises UserError, with the stage's
    name, for errors that the user can fix.
    """
    if not pipeline.stages:
        raise UserError("stages is empty: give a config file, --config configs/pipeline_*.py.")
    workdir = _workdir(pipeline)
    with run_lock.hold(workdir) if is_primary() else contextlib.nullcontext():
        return _run(pipeline, workdir)


def _run(pipeline: Pipeline, workdir: Path) -> list[dict[str, Any]]:
    configs = stage_configs(pipeline)
    tasks = _load_tasks(pipeline.sts) if pipeline.sts else []
    views = {name: _check_inputs(name, configs) for name in configs}
    if is_primary():
        _set_aside_once(workdir, list(configs), pipeline.from_stage)
    _wait_for_all("set aside")
    # Every process decides this before any of them writes.
    rows = {name: _read_finished(Path(config.workdir)) for name, config in configs.items()}
    _wait_for_all("looked")
    progress = StageProgress(configs, views)
    for name, config in configs.items():
        row = rows[name]
        progress.begin(name, finished=row is not None)
        try:
            if row is None:
                train(config)
                rows[name] = row = _finish(name, config, tasks)
                left = [each for each in configs if rows[each] is None]
                progress.end(name, row.get("seconds"), left)
                if is_primary() and (reason := warning(name, configs, rows)):
                    say(f"warning: {reason}")
            else:
                _check_finished(name, config, row)
                if tasks and config.objective.traits.embeds and not row["sts"]:
                    rows[name] = _finish(name, config, tasks)
        except UserError as error:
            # Keep the error's type: it decides whether a launcher starts the pipeline again.
            raise type(error)(f"stage {name}: {error}") from error
    _export(workdir, exported_name(pipeline), rows, tasks)
    if is_primary():
        (workdir / FROM).unlink(missing_ok=True)
    _wait_for_all("exported")
    return [row for row in rows.values() if row is not None]


def stage_configs(pipeline: Pipeline) -> dict[str, Config]:
    """The config of each stage, with the pipeline's fields and earlier stages' folders filled in.

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

    def sum_of_folders(name: str) -> str:
        """The teacher's name, which may be a sum such as `tower_a + 0.5 * tower_b`."""
        if (terms := split_sum(name)) == [(1.0, name)]:
            return folder_of(name)
        return " + ".join(f"{weight:g} * {folder_of(term)}" for weight, term in terms)

    for name, config in pipeline.stages.items():
        data = dataclasses.replace(
            config.data,
            source=config.data.source or pipeline.source,
            columns=config.data.columns if config.data.source else pipeline.columns,
            dev=_dev(pipeline, config),
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
            objective=dataclasses.replace(
                config.objective, teacher=teacher and sum_of_folders(teacher)
            ),
        )
    return configs


def _dev(pipeline: Pipeline, config: Config) -> str | None:
    """The dev set of a stage: its own, or the pipeline's; "" is none."""
    if config.data.dev is None and config.objective.traits.embeds:
        return pipeline.dev
    return config.data.dev or None


def set_aside(workdir: Path, stages: list[str], first: str) -> None:
    """Moves the folders of `first` and later stages, and the model, to `superseded/N`."""
    # The last stage first: after a kill, no stage is left whose start model was moved.
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
    """The absolute workdir, because stages name each other's folders."""
    return user_path(pipeline.workdir).resolve()


def _load_tasks(folder: str) -> list[StsTask]:
    """Reads all STS tasks; if one is missing, averages in one table would not be comparable."""
    tasks, missing = load_sts(folder)
    if missing:
        reasons = "; ".join(f"{task}: {reason}" for task, reason in missing.items())
        raise UserError(f"--sts {folder} is incomplete ({reasons}): add what is missing.")
    return tasks


def _check_inputs(name: str, configs: dict[str, Config]) -> int:
    """The views of an item. UserError now for what would stop a later stage hours from now."""
    config = configs[name]
    try:
        if config.objective.traits.crosses:
            layers = _num_layers(config, configs)
            if layers is not None:
                config.model.cross.interval(layers)
        if not config.data.source:
            raise UserError("it has no text: give --source sentences.txt.")
        source = open_source(config.data.source, config.data.columns)
        views = views_per_item(source.views, config.data)
        pairs = config.data.pairs
        # One more than a batch, since the last of adjacent sentences begins no item.
        needed = (config.data.batch_size + 1) * items_stride(source.views, pairs)
        found = sum(1 for _ in itertools.islice(source.read(), needed))
        check_batch(count_items(found, source.views, pairs), config.data)
        if config.data.dev:
            Development(config.data.dev)
        return views
    except UserError as error:
        raise UserError(f"stage {name}: {error}") from error


def _num_layers(config: Config, configs: dict[str, Config]) -> int | None:
    """The layers of a stage's first tower; None if a folder other than a model's decides them."""
    tower = config.model.towers[0]
    if tower == SCRATCH:
        return config.model.scratch.num_layers
    folder, _ = saved_model.split_name(tower)
    for earlier in configs.values():
        if earlier.workdir == folder:
            return _num_layers(earlier, configs)
    path = user_path(folder)
    plain = (path / hf_config.CONFIG).is_file()
    return hf_config.read_architecture(path).num_layers if plain else None


def _set_aside_once(workdir: Path, stages: list[str], first: str | None) -> None:
    """Does what `--from` asks, once; a marker file remembers it until the pipeline is finished."""
    marker = workdir / FROM
    if first is None or (marker.is_file() and marker.read_text().strip() == first):
        return
    set_aside(workdir, stages, first)
    workdir.mkdir(parents=True, exist_ok=True)
    with writing(marker):
        marker.write_text(first + "\n")


def _check_finished(name: str, config: Config, row: dict[str, Any]) -> None:
    """Raises UserError if a stage was finished with another config or number of steps."""
    check_config(Path(config.workdir), config)
    planned = _planned(config)
    if row["planned"] != planned:
        raise UserError(
            f"finished with {row['planned']}, but now {planned} are requested: train it and the "
            f"stages after it again with --from {name}."
        )


def _planned(config: Config) -> str:
    return f"{config.max_steps} steps" if config.max_steps else f"{config.epochs} epoch(s)"


def _read_finished(folder: Path) -> dict[str, Any] | None:
    path = folder / FINISHED
    if not path.is_file():
        return None
    row = files.read_json(path)
    if not {"planned", "step", "seconds", "sentences_per_second", "dev", "sts"} <= row.keys():
        raise UserError(f"{path} is of another version: delete it; the stage is scored again.")
    return row


def _finish(name: str, config: Config, tasks: list[StsTask]) -> dict[str, Any]:
    """Evaluates what a stage trained and marks the stage as finished."""
    scores, taken = {}, None
    if tasks and config.objective.traits.embeds:
        # On every process, because all processes must read a checkpoint together.
        encoder = SentenceEncoder.load(config.workdir)
        assert encoder.members is not None  # `load` has set them
        taken = encoder.members[0].model.step
        scores = _sts_scores(encoder, tasks)
    # Every process knows these values; the primary process reads the others from the log.
    row = {"stage": name, "planned": _planned(config), "step": taken, "sts": scores}
    if is_primary():
        row |= stage_row(name, config, taken)
        files.replace(Path(config.workdir) / FINISHED, json.dumps(row, indent=2) + "\n")
    _wait_for_all(f"finished {name}")
    return row


def exported_name(pipeline: Pipeline) -> str:
    """The stage that the pipeline exports, or STAGE#K."""
    return pipeline.export or list(pipeline.stages)[-1]


def _export(workdir: Path, name: str, rows: dict[str, Any], tasks: list[StsTask]) -> None:
    """Exports a stage's model, or one tower of it, with its scores, unless the export exists.

    Raises UserError if the export is that of another stage or tower.
    """
    folder, marker = workdir / MODEL, workdir / EXPORTED
    present = folder.exists()
    before = marker.read_text().strip() if marker.is_file() else name
    _wait_for_all("looked for the model")
    if present and before != name:
        raise UserError(f"{folder} was exported from {before}, not from {name}: delete it first.")
    if not present:
        model = saved_model.load(f"{workdir / name}")
        card = read_card(model)
        stage, tower, _ = name.partition("#")
        scores, step = rows[stage]["sts"], rows[stage]["step"]
        if tower and tasks:
            scores, step = _sts_scores(SentenceEncoder.of(model), tasks), model.step
            say(f"{name}: average of the STS tasks {scores['average']:.2f}")
        if scores and step != model.step:
            say(
                f"the model card has no scores: they are of step {step}, but the model is "
                f"{model.source}"
            )
        elif scores:
            rounded = {task: round(score, 2) for task, score in scores.items()}
            card = dataclasses.replace(card, scores={"protocol": PROTOCOL, "spearman": rounded})
        if is_primary():
            files.replace(marker, name + "\n")
            exported.export(model, folder, card)
    say(f"model: {folder}")


def _sts_scores(encoder: SentenceEncoder, tasks: list[StsTask]) -> dict[str, float]:
    found = evaluate_sts(encoder.encode, tasks)
    return {task: 100 * score.spearman for task, score in found.items()}


def _wait_for_all(what: str) -> None:
    multihost_utils.sync_global_devices(f"pipeline: {what}")
