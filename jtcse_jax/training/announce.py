"""What a run prints at its start and at its end."""

import sys
from pathlib import Path

import jax
from jax.sharding import Mesh

from jtcse_jax.config import SCRATCH, Config
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.evaluation.development import METRIC, Development, DevScore
from jtcse_jax.runtime.distributed import is_primary, say
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.workdir import METRICS
from jtcse_jax.training import objectives
from jtcse_jax.training.metrics import SPEEDS, read_jsonl
from jtcse_jax.user_path import user_path

CONTRASTIVE = ("nce", "icnce")  # terms of a loss
NEAR_ZERO = 0.01  # limit for such a term, in nats; chance is log(negatives + 1), 3.4 for 30


def say_start(config: Config, batches: PackedBatches, mesh: Mesh, first: int, stop: int) -> None:
    """Prints what is about to run."""
    devices = mesh.devices
    size, views = config.data.batch_size, batches.views_per_item
    others = objectives.negatives_per_anchor(size, views, config.objective)
    micro = f", {config.data.micro_batch} at a time" if config.data.micro_batch else ""
    negatives = f", {others} negatives an anchor" if others else ""
    say(
        f"{config.objective.name}, {len(config.model.towers)} tower(s) in "
        f"{config.model.compute_dtype} on {devices.size} {devices.flat[0].device_kind} device(s) "
        f"of {jax.process_count()} process(es); {config.data.batch_size} sentences a batch{micro} "
        f"in {batches.usual_rows} rows of {batches.row_length}{negatives}; "
        f"steps {first} to {stop}, {batches.steps_per_epoch} an epoch"
    )
    warmup = config.optimizer.warmup_steps
    if warmup >= stop:
        say(f"optimizer.warmup_steps = {warmup}: the run ends before the peak learning rate")


def warn_of_easy_contrast(config: Config, means: dict[str, float]) -> None:
    """Prints advice if the contrastive terms of the first line of metrics are near zero."""
    terms = {name: means[name] for name in CONTRASTIVE if name in means}
    if terms and max(terms.values()) < NEAR_ZERO:
        values = ", ".join(f"{name} {value:.2g}" for name, value in terms.items())
        say(
            f"The contrastive loss is near zero from the start ({values}): these sentences are "
            f"easy to tell apart. Try {harder_batches(config)}text whose sentences are more alike "
            "(docs/results.md has what was measured)."
        )


def say_end(config: Config, checkpoints: Checkpoints, dev: Development | None) -> None:
    """Prints how the run went, where the model is and, if it is usable, how to use it."""
    workdir = user_path(config.workdir)
    lines = read_jsonl(workdir / METRICS)
    trained = [line for line in lines if "loss" in line]
    if len(trained) > 1:
        changes = ", ".join(
            f"{name} {trained[0][name]:.4g} -> {value:.4g}"
            for name, value in trained[-1].items()
            if name not in ("step", *SPEEDS)
        )
        say(f"from step {trained[0]['step']} to {trained[-1]['step']}: {changes}")
    newest, best = checkpoints.newest_step(), checkpoints.best_step()
    if dev is None:
        which = f"step {newest} (newest)"
        if not config.objective.traits.embeds:
            say(f"model: {workdir}, {which}, a language model: start towers from it (model.towers)")
        elif any("text_collapsed" in line for line in lines if line["step"] == newest):
            say(f"model: {workdir}, {which}, not worth using: it has collapsed")
        else:
            _say_usage(workdir, which)
        return
    scores = {line["step"]: _dev_score(line) for line in lines if METRIC in line}
    if best is None:
        say(f"No step has a dev score: the vectors had collapsed at each. {_advice(config)}")
        say(f"model: {workdir}, step {newest} (newest), not worth using")
    elif best == 0 and newest:
        say(f"No step is better than the start, dev Spearman {scores.get(0)}. {_advice(config)}")
        say(f"model: {workdir}, step 0: the start, unchanged")
    else:
        if is_primary():
            # A start that had collapsed has no score to be better than.
            gain = dev.difference((workdir, best), (workdir, 0)) if 0 in scores else None
            gain = "" if gain is None else f": {gain}"
            start = scores.get(0, "none (collapsed)")
            say(f"dev Spearman {start} at the start, {scores.get(best)} at step {best}{gain}")
        _say_usage(workdir, f"step {best} (best by dev score)")


def _say_usage(workdir: Path, which: str) -> None:
    say(f"model: {workdir}, {which}. To use it:")
    say(f"  {sys.executable} -m jtcse_jax.encode --model {workdir} --input FILE --output V.npy")
    say(f"  {sys.executable} -m jtcse_jax.evaluate --model {workdir} --sts FOLDER_OR_PAIRS")
    say(f"  {sys.executable} -m jtcse_jax.export --model {workdir} --output FOLDER")


def _dev_score(line: dict[str, float]) -> DevScore:
    return DevScore(line[METRIC], line["dev_low"], line["dev_high"])


def _advice(config: Config) -> str:
    if SCRATCH in config.model.towers:
        return (
            "A short run from random weights learns to tell sentences apart, not what they mean: "
            "for a useful encoder start from trained towers, as configs/quickstart_minilm.py does."
        )
    return (
        f"Try a lower optimizer.learning_rate, or {harder_batches(config)}text that is more like "
        "the dev set."
    )


def harder_batches(config: Config) -> str:
    """The advice to take similar batches, if this run could have had them; else an empty text."""
    possible = config.data.batches != "similar" and SCRATCH not in config.model.towers
    return "data.batches = similar or " if possible else ""
