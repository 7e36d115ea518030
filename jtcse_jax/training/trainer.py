"""One training run, from its config to the saved model."""

import contextlib
import dataclasses
import gc
import logging
import os
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from jtcse_jax import config_file
from jtcse_jax.config import Config, ObjectiveConfig
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.data.similar_batches import SimilarBatches
from jtcse_jax.data.sources import Source, open_source
from jtcse_jax.data.tokens import TokenCache, tokenize
from jtcse_jax.errors import UserError, writing
from jtcse_jax.evaluation.development import Development
from jtcse_jax.models.towers import Bank, Params
from jtcse_jax.runtime import compilation, distributed, environment, run_lock, sharding
from jtcse_jax.runtime.distributed import is_primary, say
from jtcse_jax.store import saved_model
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.workdir import CHECKPOINTS
from jtcse_jax.training import announce, flops, objectives
from jtcse_jax.training.loop import Loop
from jtcse_jax.training.metrics import MetricsLog
from jtcse_jax.training.optimizer import make_optimizer
from jtcse_jax.training.similar_plan import find_plan
from jtcse_jax.training.start import (
    DEV,
    FORCE,
    TEXT,
    Start,
    check_config,
    check_unchanged,
    keep,
    load_teacher,
    start_model,
)
from jtcse_jax.training.train_step import (
    TrainState,
    as_checkpoint,
    from_checkpoint,
    init_state,
    make_train_step,
)
from jtcse_jax.user_path import user_path


def train_from_command_line(program: str) -> Config:
    """Trains with the arguments of `python -m program` and returns the config."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    with distributed.said_once():
        config = config_file.parse(Config, program)
    set_up_jax(config.deterministic)
    if is_primary():
        logging.getLogger("jtcse_jax").setLevel(logging.INFO)
    train(config)
    return config


def train(config: Config, *, devices: list[sharding.Device] | None = None) -> None:
    """Trains, evaluates and saves one run; called again with the same workdir, it resumes.

    `devices` are those of the mesh, by default all. Raises UserError for errors that the user can
    fix and for a loss that is not finite, and Stopped after SIGTERM, with the step saved.
    """
    if not config.data.source:
        raise UserError("data.source is not set: give your text, --data.source sentences.txt")
    if config.eval_layers and jax.process_count() > 1:
        raise UserError("eval_layers = True works on one process only; leave it out.")
    if config.eval_layers and not config.data.dev:
        raise UserError("eval_layers = True needs dev sentences: set data.dev.")
    workdir = user_path(config.workdir)
    source = open_source(config.data.source)
    dev = Development(config.data.dev) if config.data.dev else None
    mesh = sharding.make_mesh(config.tower_devices, config.fsdp_devices, devices=devices)
    with (
        run_lock.hold(workdir) if is_primary() else contextlib.nullcontext(),
        Checkpoints(workdir / CHECKPOINTS, keep=config.keep) as checkpoints,
    ):
        resuming = checkpoints.newest_step() is not None
        text, scored = source.fingerprint(), dev.fingerprint() if dev else ""
        distributed.check_shared(workdir)
        distributed.check_agreement(config=config, text=text, dev=scored, checkpoints=resuming)
        if resuming:
            check_config(workdir, config)
            check_unchanged(config, TEXT, "data.source", text)
            check_unchanged(config, DEV, "data.dev", scored)
        elif checkpoints.only_damaged() and not config.force:
            raise UserError(
                f"all checkpoints of the run in {workdir} are damaged, so it cannot resume: "
                f"name a new --workdir, or {FORCE}, from the first step."
            )
        start = start_model(config, source, workdir, resuming=resuming)
        bank = Bank.from_config(config.model, start.architecture, mesh, pooling=start.pooling)
        teacher, teacher_tokenizers, taught = load_teacher(config, bank, mesh, resuming=resuming)
        if jax.process_count() > 1:  # only then, because this hashes all weights
            distributed.check_agreement(model=start.fingerprint(), teacher=taught)
        if not resuming and is_primary():
            with writing(workdir):
                saved_model.write_workdir(workdir, bank, start.tokenizer, start.serving_length)
        tokenizers = [start.tokenizer, *teacher_tokenizers]
        caches = tokenize_text(config, source, tokenizers)
        plan = None
        if config.data.batches == "similar":
            plan = find_plan(workdir, caches[0], config.data.pairs, bank, start)
        positions = start.architecture.longest_sentence
        batches = make_batches(config, caches, plan, mesh, positions)
        stop = config.max_steps or config.epochs * batches.steps_per_epoch
        optimizer = make_optimizer(config.optimizer, stop)
        vocab_size = start.architecture.vocab_size
        objective = find_mask_token(config.objective, start.tokenizer, vocab_size)
        state, shardings = start_state(config, bank, start, optimizer, checkpoints, mesh)
        first = int(state.step)
        if is_primary():
            keep(workdir, config, {TEXT: text, DEV: scored} | taught)
            with writing(workdir):  # with --force, pooling and length may have changed
                saved_model.describe_workdir(workdir, bank, start.serving_length)
            environment.record(workdir, first)
        announce.say_start(config, batches, mesh, first, stop)
        log = MetricsLog(
            workdir,
            start_step=first if resuming else None,
            write=is_primary(),
            wandb=config.wandb,
            config=dataclasses.asdict(config),
        )
        with contextlib.closing(log):
            loop = Loop(
                config=config,
                mesh=mesh,
                bank=bank,
                tokenizer=start.tokenizer,
                serving_length=start.serving_length,
                batches=batches,
                train_step=make_train_step(bank, objective, optimizer, shardings, teacher),
                checkpoints=checkpoints,
                dev=dev,
                log=log,
                say=say,
                peak_flops=peak_of_all(config, mesh),
            )
            if dev is None:
                say("no data.dev: no best step is selected, and the newest is kept")
            elif not resuming:
                overlap = dev.word_overlap()
                say(f"dev set {dev.name}, {len(dev.pairs)} pairs; word overlap: {overlap}")
                loop.score_start(state)
            if first >= stop:
                say(f"already trained for {first} steps; give a higher --max-steps to continue")
            else:
                loop.run(state, first, stop)
        announce.say_end(config, checkpoints, dev)


def start_state(
    config: Config,
    bank: Bank,
    start: Start,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    mesh: Mesh,
) -> tuple[TrainState, TrainState]:
    """The state on the devices, new or from the newest undamaged checkpoint, and its shardings."""
    key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def fresh(towers: Params, head: Params | None = None) -> TrainState:
        params = objectives.init_params(bank, towers, key, config.objective, head)
        return init_state(params, optimizer)

    abstract = jax.eval_shape(fresh, bank.abstract())
    shardings = sharding.state_shardings(mesh, abstract)
    if start.towers is not None:
        towers = sharding.place(start.towers, shardings.params["towers"])
        head = start.mlm_head
        if head is not None:
            head = sharding.place(head, shardings.params["head"])
        return jax.jit(fresh, out_shardings=shardings)(towers, head), shardings
    step, saved = checkpoints.restore(**as_checkpoint(sharding.abstract(abstract, shardings)))
    say(f"resuming from step {step}")
    return from_checkpoint(saved), shardings


def find_mask_token(objective: ObjectiveConfig, tokenizer: Any, vocab_size: int) -> ObjectiveConfig:
    """The objective with the tokenizer's mask token, if it needs one and the config names none."""
    if objective.traits.embeds:
        return objective
    if objective.mask_token_id is not None:
        if not 0 <= objective.mask_token_id < vocab_size:
            raise UserError(
                f"objective.mask_token_id = {objective.mask_token_id}: choose from 0 to "
                f"{vocab_size - 1}."
            )
        return objective
    if tokenizer.mask_token_id is None:
        raise UserError(
            "objective.name = mlm: the tokenizer has no mask token; give one of its ids, "
            "objective.mask_token_id."
        )
    return dataclasses.replace(objective, mask_token_id=tokenizer.mask_token_id)


def tokenize_text(config: Config, source: Source, tokenizers: list[Any]) -> list[TokenCache]:
    """The text as tokens of each tokenizer: the model's, then those of the teacher."""
    data = config.data
    caches = [
        tokenize(source, tokenizer, data.max_len, data.cache_dir, progress=is_primary())
        for tokenizer in tokenizers
    ]
    stats = caches[0].stats
    say(
        f"text {data.source}: {stats['sentences']:,} sentences of {stats['mean_length']:.1f} "
        f"tokens, {stats['truncated']:,} cut to {data.max_len}, {stats['blank']:,} blank lines "
        "skipped"
    )
    return caches


def make_batches(
    config: Config,
    caches: list[TokenCache],
    similar: SimilarBatches | None,
    mesh: Mesh,
    positions: int,
) -> PackedBatches:
    """The batches of the run, of which this process fills its own rows.

    `caches` are those of `tokenize_text`; the model reads at most `positions` tokens.
    """
    data = config.data
    if similar is not None:
        apart = len(similar.order) - similar.num_grouped
        say(
            f"batches of similar sentences, {data.random_share:.0%} of each random, {apart:,} "
            "near-duplicates kept out of the groups"
        )
    return PackedBatches(
        caches[0],
        data,
        seed=config.seed,
        positions=positions,
        similar=similar,
        row_multiple=sharding.row_shards(mesh),
        shard=sharding.data_shard(mesh),
        teachers=caches[1:],
    )


def peak_of_all(config: Config, mesh: Mesh) -> float | None:
    """Peak operations per second of all devices together; None if unknown."""
    kind = mesh.devices.flat[0].device_kind
    each = flops.peak_flops(kind, config.model.compute_dtype)
    if config.peak_tflops is not None:
        each = config.peak_tflops * 1e12
    return each and each * mesh.devices.size


def set_up_jax(deterministic: bool) -> None:
    """Settings that must be made before anything uses a device; see `Config.deterministic`."""
    # Orbax logs a traceback if a save fails, before our one-line error is raised.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Freezes the imported objects: a collection over them takes a quarter of tracing a step.
    gc.freeze()
    compilation.keep_compiled()
    if deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"
    distributed.initialize()
