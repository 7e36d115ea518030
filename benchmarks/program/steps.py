"""The trainer's step and the encoder, lowered for devices that need not be there."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.batch import Batch
from jtcse_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig
from jtcse_jax.data.packing import fill, pack, usual_row_length, usual_slots
from jtcse_jax.encoding import bank_encoder
from jtcse_jax.errors import UserError
from jtcse_jax.models.teacher import Teacher
from jtcse_jax.models.towers import Bank
from jtcse_jax.runtime import sharding
from jtcse_jax.training.flops import Work, forward_flops, step_flops
from jtcse_jax.training.objectives import init_params
from jtcse_jax.training.optimizer import make_optimizer
from jtcse_jax.training.train_step import init_state, make_train_step

MASK_TOKEN = 103  # BERT's; any id compiles to the same program
TEACHER_TOWERS = 2


@dataclass(frozen=True)
class Case:
    """What to compile."""

    architecture: Architecture
    objective: str = "tncse"
    towers: int = 2
    batch: int = 64  #: sentences, over all devices
    micro_batch: int | None = None
    dtype: str = "bfloat16"
    max_len: int = 64
    rows: int | None = None  #: rows of a batch or micro-batch; by default as many as it needs
    tower_devices: int = 1
    fsdp_devices: int = 1
    cross: str = "side"
    pooling: str = "cls"
    dropout: float = 0.1
    generator: str = "threefry2x32"


@dataclass(frozen=True)
class Lowered:
    """A program that can be compiled, and the work it does."""

    lowered: jax.stages.Lowered
    flops: float  #: products over real tokens, on all devices
    parameters: int  #: parameters of the bank
    rows: int  #: rows of a batch, over all devices
    tokens: int  #: real tokens of all views


def lower_step(case: Case, devices: list[jax.Device]) -> Lowered:
    """Lowers the jitted step that the trainer runs; state and batch have shapes only."""
    mesh = sharding.make_mesh(case.tower_devices, case.fsdp_devices, devices=devices)
    bank, objective = _bank(case, mesh), checked_config(case).objective
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    rows = packed_batch(case, sharding.row_shards(mesh))
    teacher = _teacher(case, mesh)
    if teacher is not None:
        rows = rows._replace(teacher=(rows,))
    state = jax.eval_shape(
        lambda towers: init_state(
            init_params(bank, towers, jax.random.key(0), objective), optimizer, mesh
        ),
        bank.abstract(),
    )
    shardings = sharding.state_shardings(mesh, state)
    step = make_train_step(bank, objective, optimizer, shardings, teacher)
    one = sharding.batch_shardings(mesh, micro_batches=rows.has_micro_batches)
    placed = sharding.abstract(rows, one._replace(teacher=(one,) * len(rows.teacher)))
    key = jax.eval_shape(lambda: jax.random.key(0, impl=case.generator))
    # A teacher reads the batch's own words; its work counts too.
    flops = step_flops(bank, objective, rows, teacher)
    lowered = step.lower(sharding.abstract(state, shardings), placed, key)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Lowered(lowered, float(flops), parameters, _rows(rows), int(Work.of(rows).tokens))


def lower_encoder(case: Case, devices: list[jax.Device]) -> Lowered:
    """Lowers the encoder's call for full rows of 64 tokens, as many as it takes per call."""
    mesh = sharding.make_mesh(devices=devices)
    bank = replace(_bank(case, mesh), dropout=0.0, attention_dropout=0.0)
    length, slots = bank_encoder.SHORT_ROW, bank_encoder.SHORT_ROW // bank_encoder.FEWEST
    count = max(1, bank_encoder.USUAL_CALL // length) * sharding.row_shards(mesh)
    shape = np.zeros((count, length), np.int32)
    # Two sentences fill a row; which ones they are changes nothing in the program.
    positions = np.tile(np.arange(length, dtype=np.int32) % (length // 2), (count, 1))
    batch = Batch(
        shape,
        positions,
        shape + 1,
        np.zeros((count, slots), np.int32),
        order=np.zeros(count * bank_encoder.USUAL_SENTENCES, np.int32),
        mask=np.ones(count * bank_encoder.USUAL_SENTENCES, bool),
    )
    placed = sharding.abstract(batch, sharding.batch_shardings(mesh))
    params = sharding.abstract(bank.abstract(), sharding.whole_towers(mesh, bank.abstract()))
    work = Work(count * length, count * length**2 / 2, 2 * count)
    flops = bank.num_towers * forward_flops(bank.architecture, work, pooling=bank.pooling)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    lowered = bank_encoder.embed.lower(bank, mesh, params, placed)
    return Lowered(lowered, flops, parameters, count, int(work.tokens))


def packed_batch(case: Case, columns: int) -> Batch:
    """A batch, or its micro-batches, of sentences with lengths like Wikipedia's.

    A batch has one multiple of `columns` rows. Raises UserError if `case.rows` are too few.
    """
    views = 1 if case.objective == "mlm" else 2
    count = case.micro_batch or case.batch
    row_length = usual_row_length(case.max_len)
    slots = usual_slots(row_length)
    lengths = np.repeat(sentence_lengths(case.batch, case.max_len), views)
    parts = [lengths[n : n + views * count] for n in range(0, len(lengths), views * count)]
    plans = [pack(part, row_length, slots) for part in parts]
    needed = max(plan.num_rows for plan in plans)
    if case.rows is not None and case.rows < needed:
        raise UserError(f"--rows {case.rows}: {count} sentences need {needed} rows here.")
    rows = -(-(case.rows or needed) // columns) * columns
    batches = []
    for part, plan in zip(parts, plans, strict=True):
        words = [np.ones(length, np.int32) for length in part]
        arrays = fill(plan, words.__getitem__, rows, pad_id=0)
        batches.append(Batch(*arrays, order=plan.order, mask=np.ones(len(part) // views, bool)))
    if case.micro_batch is None:
        return batches[0]
    return jax.tree.map(lambda *each: np.stack(each), *batches)


def sentence_lengths(count: int, max_len: int) -> np.ndarray:
    """Lengths in tokens: lognormal with a mean of about 31, as of Wikipedia's sentences."""
    lengths = np.random.default_rng(0).lognormal(np.log(28.5), 0.5, count)
    return np.clip(lengths, 4, max_len).astype(np.int64)


def checked_config(case: Case) -> Config:
    """The trainer's config of a case. Raises UserError if the trainer would refuse it."""
    half = max(1, case.architecture.num_layers // 2)
    needs: dict[str, Any] = {
        "distill": {"teacher": "a bank of the same size"},
        "mlm": {"mask_token_id": min(MASK_TOKEN, case.architecture.vocab_size - 1)},
    }
    if case.max_len > case.architecture.longest_sentence:
        longest = case.architecture.longest_sentence
        raise UserError(f"--max-len {case.max_len}: the model reads at most {longest} tokens.")
    return Config(
        model=ModelConfig(
            towers=("scratch",) * case.towers,
            compute_dtype=case.dtype,
            dropout=case.dropout,
            attention_dropout=case.dropout,
            cross=Cross(case.cross, num_layers=half),
        ),
        data=DataConfig(
            batch_size=case.batch,
            micro_batch=case.micro_batch,
            max_len=case.max_len,
            pairs="none" if case.objective == "mlm" else "same",
        ),
        objective=ObjectiveConfig(name=case.objective, **needs.get(case.objective, {})),
        tower_devices=case.tower_devices,
        fsdp_devices=case.fsdp_devices,
    )


def _bank(case: Case, mesh: Mesh) -> Bank:
    config = checked_config(case)
    return Bank.from_config(config.model, case.architecture, mesh, pooling=case.pooling)


def _teacher(case: Case, mesh: Mesh) -> Teacher | None:
    """For distill, a bank of two towers of the student's size."""
    if case.objective != "distill":
        return None
    # As a loaded model: on every device, without a mesh of its own.
    like = _bank(case, mesh)
    bank = replace(like, num_towers=TEACHER_TOWERS, dropout=0.0, attention_dropout=0.0, mesh=None)
    shapes = bank.abstract()
    everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), shapes)
    placed = sharding.abstract(shapes, everywhere)
    return Teacher((bank,), (1.0,), (placed,))


def _rows(batch: Batch) -> int:
    return int(np.prod(batch.tokens.shape[:-1]))
