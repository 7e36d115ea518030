"""One training run, from its config to the saved model: prepare it, then run it."""

import contextlib
import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import optax
from jax import Array
from jax.sharding import Mesh

from jtcse_jax.config import Config, ObjectiveConfig
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.data.similar_batches import SimilarBatches
from jtcse_jax.data.sources import Source, open_source
from jtcse_jax.data.tokens import TokenCache, tokenize
from jtcse_jax.data.unknown import percentage, warn_of_unknown
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError, writing
from jtcse_jax.evaluation.development import Development
from jtcse_jax.evaluation.examples import first_sentences
from jtcse_jax.models.layer_stacks import has_stacks, stack_layers, unstack_layers
from jtcse_jax.models.towers import Bank, Params
from jtcse_jax.runtime import distributed, environment, run_lock, sharding
from jtcse_jax.runtime.distributed import is_primary, say
from jtcse_jax.store import hf_tokenizer, saved_model
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.workdir import CHECKPOINTS, METRICS, TOKENIZER
from jtcse_jax.training import announce, objectives, run_record
from jtcse_jax.training.callbacks import Callbacks
from jtcse_jax.training.loop import Loop
from jtcse_jax.training.metrics import read_jsonl
from jtcse_jax.training.optimizer import make_optimizer
from jtcse_jax.training.python_data import with_python_data
from jtcse_jax.training.similar_plan import find_plan
from jtcse_jax.training.start import Start, load_teacher, start_model
from jtcse_jax.training.train_step import (
    TrainState,
    as_checkpoint,
    from_checkpoint,
    init_state,
    make_train_step,
)
from jtcse_jax.user_path import user_path

if TYPE_CHECKING:
    from jtcse_jax.training.python_data import ScoredPairs, Text


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves in its workdir."""

    workdir: Path
    step: int  #: the model's step: the best by dev score, or the newest if no step has a score
    dev_spearman: float | None  #: raw dev score of this step

    @property
    def history(self) -> list[dict[str, float]]:
        """The lines of `metrics.jsonl`: the step, with training metrics or with dev scores."""
        return read_jsonl(self.workdir / METRICS)

    def encoder(self) -> SentenceEncoder:
        """Loads the model of `step`. With several processes, all must call it."""
        return SentenceEncoder.load(self.workdir, step=self.step)


def train(
    config: Config,
    *,
    source: "Text | None" = None,
    dev: "ScoredPairs | None" = None,
    devices: list[sharding.Device] | None = None,
    callbacks: Callbacks | None = None,
) -> TrainResult:
    """Trains, evaluates and saves one run; called again with the same workdir, it resumes.

    Args:
      config: the run; `source` and `dev` take the place of its `data.source` and `data.dev`.
      source: the text as a list of sentences, a list of tuples (anchor, positive, any hard
        negatives), or a `datasets.Dataset`, whose columns `data.columns` names.
      dev: scored pairs as a list of (sentence, sentence, score), or a `datasets.Dataset` with the
        columns sentence1, sentence2 and score. See `python_data` for both.
      devices: those of the mesh, by default all.
      callbacks: an object of a subclass of `Callbacks`, to follow the run.
    Raises:
      UserError: an error that the user can fix, or a loss that is not finite.
      Stopped: after SIGTERM or Ctrl-C, with the step saved.
    """
    config = dataclasses.replace(config, data=with_python_data(config.data, source, dev))
    if not isinstance(callbacks, Callbacks | None):
        raise UserError(
            f"callbacks is a {type(callbacks).__name__}: give an object of a subclass of "
            "jtcse_jax.training.callbacks.Callbacks."
        )
    if not config.data.source:
        raise UserError("data.source is not set: give your text, --data.source sentences.txt")
    if config.eval_layers and jax.process_count() > 1:
        raise UserError("eval_layers = True works on one process only; leave it out.")
    for name in ("eval_layers", "patience"):
        if getattr(config, name) and not config.data.dev:
            raise UserError(f"{name} = {getattr(config, name)} needs dev sentences: set data.dev.")
    workdir = user_path(config.workdir)
    text = open_source(config.data.source, config.data.columns)
    dev_set = Development(config.data.dev) if config.data.dev else None
    mesh = sharding.make_mesh(config.tower_devices, config.fsdp_devices, devices=devices)
    with (
        run_lock.hold(workdir) if is_primary() else contextlib.nullcontext(),
        Checkpoints(workdir / CHECKPOINTS, keep=config.keep) as checkpoints,
    ):
        loop, state = prepare(config, text, dev_set, mesh, checkpoints)
        loop.callbacks = callbacks or Callbacks()
        loop.run(state)
        announce.say_end(config, checkpoints, dev_set)
        best, newest = checkpoints.best_step(), checkpoints.newest_step()
        step = newest if best is None else best
        assert step is not None  # the last step is saved
        return TrainResult(workdir, step, checkpoints.score(step))


def prepare(
    config: Config,
    source: Source,
    dev: Development | None,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> tuple[Loop, TrainState]:
    """Returns the loop of a run, and its state: new, or from the newest undamaged checkpoint."""
    workdir = user_path(config.workdir)
    resuming = checkpoints.newest_step() is not None
    hashes = {"text": source.fingerprint(), "dev": dev.fingerprint() if dev else ""}
    distributed.check_shared(workdir)
    distributed.check_agreement(config=config, **hashes, checkpoints=resuming)
    if resuming:
        run_record.check_config(workdir, config)
    elif checkpoints.only_damaged() and not config.force:
        raise UserError(
            f"all checkpoints of the run in {workdir} are damaged, so it cannot resume: "
            f"name a new --workdir, or {run_record.FORCE}, from the first step."
        )
    start = start_model(config, source, workdir, resuming=resuming)
    bank = Bank.from_config(config.model, start.architecture, mesh, pooling=start.pooling)
    teacher, teacher_tokenizers, hashes["teacher"] = load_teacher(config, bank, mesh)
    if resuming:
        run_record.check_inputs(config, hashes)
    if jax.process_count() > 1:  # only then, because this hashes all weights
        distributed.check_agreement(model=start.fingerprint(), teacher=hashes["teacher"])
    caches = tokenize_text(config, source, [start.tokenizer, *teacher_tokenizers])
    plan = None
    if config.data.batches == "similar":
        plan = find_plan(workdir, caches[0], config.data.pairs, bank, start)
    batches = make_batches(config, caches, plan, mesh, start.architecture.longest_sentence)
    stop = config.max_steps or config.epochs * batches.steps_per_epoch
    optimizer = make_optimizer(config.optimizer, stop)
    objective = find_mask_token(config.objective, start.tokenizer, start.architecture.vocab_size)
    state, shardings = start_state(config, bank, start, optimizer, checkpoints, mesh)
    first = int(state.step)
    if is_primary():
        run_record.record(workdir, config, hashes)
        with writing(workdir):  # with --force, pooling and length may have changed
            if not resuming:
                hf_tokenizer.save_tokenizer(start.tokenizer, workdir / TOKENIZER)
            saved_model.describe_workdir(workdir, bank, start.serving_length, start.serving)
        environment.record(workdir, first)
    announce.say_start(config, batches, mesh, first, stop)
    loop = Loop(
        config=config,
        bank=bank,
        tokenizer=start.tokenizer,
        serving_length=start.serving_length,
        serving=start.serving,
        batches=batches,
        train_step=make_train_step(bank, objective, optimizer, shardings, teacher),
        checkpoints=checkpoints,
        dev=dev,
        sample=first_sentences(source) if dev is None and objective.traits.embeds else [],
        resuming=resuming,
        stop=stop,
    )
    return loop, state


def start_state(
    config: Config,
    bank: Bank,
    start: Start,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    mesh: Mesh,
) -> tuple[TrainState, TrainState]:
    """The state on the devices, new or from the newest undamaged checkpoint, and its shardings."""
    new = _new_state(bank, config.objective, optimizer)
    if start.towers is not None:
        towers = sharding.place(start.towers, sharding.state_shardings(mesh, bank.abstract()))
        head = start.mlm_head
        if head is not None:
            head = sharding.place(head, new.shardings.params["head"])
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        return new.make(towers, key, head), new.shardings
    single = jax.eval_shape(unstack_layers, new.abstract)
    wanted = sharding.abstract(single, sharding.state_shardings(mesh, single))
    step, saved = checkpoints.restore(**as_checkpoint(wanted))
    say(f"resuming from step {step}")
    state = from_checkpoint(saved)
    if has_stacks(new.abstract):
        state = jax.jit(stack_layers, out_shardings=new.shardings)(state)
    return state, new.shardings


class _NewState(NamedTuple):
    """The state before the first step, of any towers of a bank."""

    abstract: TrainState  # shapes and dtypes
    shardings: TrainState
    make: jax.stages.Wrapped  # the state from towers, the key of a new head, and a trained head


@lru_cache(maxsize=2)  # as many as compiled steps
def _new_state(
    bank: Bank, objective: ObjectiveConfig, optimizer: optax.GradientTransformation
) -> _NewState:
    assert bank.mesh is not None  # the bank of a run has one

    def make(towers: Params, key: Array, head: Params | None) -> TrainState:
        params = objectives.init_params(bank, towers, key, objective, head)
        return init_state(params, optimizer, bank.mesh)

    abstract = jax.eval_shape(make, bank.abstract(), jax.random.key(0), None)
    shardings = sharding.state_shardings(bank.mesh, abstract)
    return _NewState(abstract, shardings, jax.jit(make, out_shardings=shardings))


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
    items = f" in {stats['sentences'] // source.views:,} records" if source.views > 1 else ""
    say(
        f"text {data.source}: {stats['sentences']:,} sentences{items} of "
        f"{stats['mean_length']:.1f} tokens, {stats['truncated']:,} cut to {data.max_len}, "
        f"{stats['blank']:,} blank lines or records skipped, "
        f"{percentage(stats['unknown'], stats['characters'])} of the characters unknown"
    )
    if is_primary():
        warn_of_unknown(stats["source"], stats["unknown"], stats["characters"])
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
        if 2 * apart > len(similar.order):
            say(
                "To the start model most sentences are near-duplicates, so most batches are "
                "random: the text repeats itself, or that model cannot tell sentences apart. A "
                "language model often cannot; train SimCSE with random batches from it first."
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
