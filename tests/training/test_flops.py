"""The arithmetic of a step, against XLA's count of the compiled step and against loops."""

import dataclasses

import jax
import numpy as np
import pytest

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig, OptimizerConfig
from jtcse_jax.data.packing import fill, pack
from jtcse_jax.models.teacher import Teacher
from jtcse_jax.models.towers import Bank
from jtcse_jax.training import losses
from jtcse_jax.training.flops import Work, crossed_layers, forward_flops, peak_flops, step_flops
from jtcse_jax.training.objectives import init_params
from jtcse_jax.training.optimizer import make_optimizer
from jtcse_jax.training.train_step import init_state, make_train_step

# Wide enough that products are nearly all of it, as in a real encoder.
WIDE = Architecture(
    vocab_size=600, hidden_size=384, num_layers=2, num_heads=6, intermediate_size=1536
)
ROWS, LENGTH = 16, 64


def full_rows() -> Batch:
    """One view fills each row: nothing is computed that the arithmetic does not count."""
    tokens = np.random.default_rng(0).integers(0, 600, (ROWS, LENGTH), np.int32)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    slots = np.zeros((ROWS, 1), np.int32)
    order, mask = np.arange(ROWS, dtype=np.int32), np.ones(ROWS // 2, bool)
    return Batch(tokens, positions, np.ones_like(tokens), slots, order, mask)


def compiled_step(bank: Bank, objective: ObjectiveConfig, teacher: Teacher | None = None):
    """The compiled step of abstract parameters and its batch, and the state."""
    batch = full_rows()
    if teacher is not None:
        batch = batch._replace(teacher=(batch,))
    optimizer = make_optimizer(OptimizerConfig(), 10)
    key = jax.random.key(0)
    state = jax.eval_shape(
        lambda towers: init_state(init_params(bank, towers, key, objective), optimizer),
        bank.abstract(),
    )
    step = make_train_step(bank, objective, optimizer, teacher=teacher)
    return step.lower(state, batch, key).compile(), batch, state


TEACHER_BANK = Bank(WIDE, 2)
CASES = {
    "simcse": (Bank(WIDE, 1), ObjectiveConfig(name="simcse"), None),
    "mean": (Bank(WIDE, 1, pooling="mean"), ObjectiveConfig(name="simcse"), None),
    "tncse": (Bank(WIDE, 2), ObjectiveConfig(name="tncse"), None),
    "side": (Bank(WIDE, 2, cross=Cross("side", "value", 1)), ObjectiveConfig(name="jtcse"), None),
    "main": (Bank(WIDE, 2, cross=Cross("main", "value", 1)), ObjectiveConfig(name="jtcse"), None),
    "mlm": (Bank(WIDE, 1), ObjectiveConfig(name="mlm", mask_token_id=4), None),
    "distill": (
        Bank(WIDE, 1),
        ObjectiveConfig(name="distill", teacher="a"),
        Teacher((TEACHER_BANK,), (1.0,), (TEACHER_BANK.abstract(),)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_compiled_step_does_what_the_arithmetic_says(case):
    bank, objective, teacher = CASES[case]
    bank = dataclasses.replace(bank, dropout=0.1, attention_dropout=0.1)
    compiled, batch, state = compiled_step(bank, objective, teacher)
    counted = compiled.cost_analysis()["flops"]
    arithmetic = float(step_flops(bank, objective, batch, teacher))
    # What the count has beyond products is a few operations an entry, and the optimizer's
    # fifteen or so a parameter, which a batch as small as this does not outweigh.
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert arithmetic < counted < 1.05 * arithmetic + 25 * parameters
    # The state is donated: what comes out lies where it was.
    memory = compiled.memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= size
    assert "copy(%state_" not in compiled.as_text()


def test_crossed_streams_are_counted_from_the_first_crossed_layer_on():
    side = CASES["side"]
    tncse = float(step_flops(*CASES["tncse"][:2], full_rows()))
    # The second of two layers crosses, and it is the short one.
    assert float(step_flops(*side[:2], full_rows())) < 1.5 * tncse
    every = dataclasses.replace(side[0], cross=Cross("side", "value", 2))
    assert float(step_flops(every, side[1], full_rows())) == pytest.approx(2 * tncse)
    assert [crossed_layers(WIDE, Cross(mode, "value", 2)) for mode in ("side", "main", "off")] == [
        *(2, 0, 0)
    ]


def test_work_of_a_packed_batch_is_that_of_its_sentences():
    lengths = np.array([3, 3, 7, 7, 5, 5, 1, 1])
    packing = pack(lengths, 16, 4)
    arrays = fill(packing, lambda i: np.full(lengths[i], 9), 5, pad_id=0)
    work = Work.of(Batch(*arrays, order=packing.order, mask=np.ones(4, bool)))
    assert [float(each) for each in work] == [32, 168, 8]


def test_a_large_batch_leaves_no_integer():
    """Of 512 views the last layer's products are beyond 2^31."""
    rows, length = 512, 4
    tokens = np.zeros((rows, length), np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    slots = np.zeros((rows, 1), np.int32)
    batch = Batch(tokens, positions, tokens + 1, slots, np.arange(rows), np.ones(rows, bool))
    bank = Bank(dataclasses.replace(WIDE, hidden_size=768, intermediate_size=3072), 2)
    expected = 6 * forward_flops(bank.architecture, Work(rows * length, rows * length**2, rows))
    assert float(step_flops(bank, ObjectiveConfig(name="tncse"), batch)) == pytest.approx(expected)


def test_forward_flops_by_hand():
    small = Architecture(
        vocab_size=9, hidden_size=2, num_layers=3, num_heads=1, intermediate_size=5
    )
    work = Work(tokens=4, squares=8, views=2)  # two views of two tokens
    # Of a token: projections of 2 x 2 four times, 2 x 5 and 5 x 2: 36 products; and of each of
    # the 8 pairs of a query and a key: two products of 2.
    layer = 2 * (4 * 36 + 8 * 4)
    last = 2 * (4 * 8 + 2 * 28 + 4 * 4)
    assert forward_flops(small, work) == 2 * layer + last
    assert forward_flops(small, work, pooling="mean") == 3 * layer
    assert forward_flops(small, work, crossed_layers=2) == 3 * layer + 2 * last


def test_peaks():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_flops("NVIDIA L40S", "bfloat16") != peak_flops("NVIDIA L4", "bfloat16")
    assert peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert peak_flops("TPU v4", "float32") is None and peak_flops("cpu", "float32") is None


def test_losses_hold_no_array_of_rows_times_rows_times_width():
    """512 rows of 768: the published way holds [512, 512, 768] in float32, 805 MB."""

    def total(x, y, p, q):
        nce = sum(losses.info_nce(a, b, temperature=0.05) for a, b in ((x, x), (y, y), (x, y)))
        return nce + losses.ictm(x, y, p, q) + losses.ictm(y, x, q, p)

    shape = jax.ShapeDtypeStruct((512, 768), np.float32)
    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3))).lower(*[shape] * 4).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 40e6
