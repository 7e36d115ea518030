"""Small banks and batches, and each objective computed from the reference losses."""

import functools

import jax
import numpy as np
from reference_losses import (
    reference_ictm,
    reference_info_nce,
)

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.models.towers import Bank, TowerOutputs
from jtcse_jax.training import objectives

TINY = Architecture(
    vocab_size=50,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    max_positions=16,
)
ROW_LENGTH, SLOTS = 12, 4
VIEWS = [[1, 5, 2], [1, 6, 2], [1, 7, 8, 2], [1, 9, 2], [1, 3, 4, 11, 2], [1, 10, 12, 2]]
ROWS = [[0, 1, 4], [2, 3], [5]]  # which views lie in which row: neighbours are of any sentence
KEYS = [jax.random.key(seed) for seed in range(4)]
SIDE = Cross("side", "value", 1)


class Recorder:
    """A bank that keeps what `apply` returned, so that a test sees what the objective saw."""

    def __init__(self, bank: Bank):
        self.bank, self.cross = bank, bank.cross

    def apply(self, *args, **kwargs):
        self.seen = self.bank.apply(*args, **kwargs)
        return self.seen


class GivenOutputs:
    """A bank without encoders: its towers' "parameters" are the outputs themselves."""

    cross = SIDE

    def apply(self, outputs, batch, *, key, crossed=False):
        return outputs if crossed else outputs._replace(crossed=outputs.hidden)


def make_outputs(num_towers: int) -> TowerOutputs:
    """Vectors [K, 6, 8] with cosines of both signs between towers."""
    rng = np.random.default_rng(3)
    shared = rng.normal(size=(3, 1, 6, 8))
    return TowerOutputs(*(shared + 0.7 * rng.normal(size=(3, num_towers, 6, 8))).astype(np.float32))


def make_batch(
    views: list[list[int]] = VIEWS, mask: list[bool] | None = None, per_sentence: int = 2
) -> Batch:
    """A batch of the first len(views) views of ROWS, packed by hand; `mask` is by sentence."""
    shape = (len(ROWS), ROW_LENGTH)
    tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    cls_positions = np.zeros((len(ROWS), SLOTS), np.int32)
    order = np.zeros(len(views), np.int32)
    for row, members in enumerate(ROWS):
        start = 0
        for slot, view in enumerate(v for v in members if v < len(views)):
            stop = start + len(views[view])
            tokens[row, start:stop] = views[view]
            positions[row, start:stop] = np.arange(stop - start)
            segments[row, start:stop] = slot + 1
            cls_positions[row, slot] = start
            order[view] = row * SLOTS + slot
            start = stop
    exists = np.ones(len(views) // per_sentence, bool) if mask is None else np.array(mask)
    return Batch(tokens, positions, segments, cls_positions, order, exists)


def make_bank(num_towers: int = 2, cross: Cross = SIDE, **fields) -> Bank:
    return Bank(**{"architecture": TINY, "num_towers": num_towers, "cross": cross} | fields)


@functools.cache
def make_towers():
    """Two towers that differ, but alike enough for cosines of both signs between them."""
    rng = np.random.default_rng(0)

    def spread(leaf):
        shared = 0.3 * rng.normal(size=leaf.shape[1:])
        return (leaf + shared + 0.15 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(spread, make_bank().init(0))


def make_params(bank: Bank, config: ObjectiveConfig):
    params = objectives.init_params(bank, make_towers(), jax.random.key(1), config)
    if "head" in params:  # its kernel starts at 0.02: tanh would be linear
        params["head"] = jax.tree.map(lambda leaf: 20 * leaf + 0.1, params["head"])
    return params


def run(bank: Bank, config: ObjectiveConfig, batch: Batch, key=KEYS[0]):
    """Loss, terms and the bank's outputs, as numpy arrays."""
    recorder = Recorder(bank)
    objective = objectives.OBJECTIVES[config.name]
    loss, terms = objective(recorder, make_params(bank, config), batch, key, config)
    return jax.tree.map(np.asarray, (loss, terms, recorder.seen))


def gradients(bank, config: ObjectiveConfig, batch: Batch, params=None):
    """Gradients of the loss by path, as numpy arrays."""
    objective = objectives.OBJECTIVES[config.name]
    tree = jax.grad(lambda params: objective(bank, params, batch, KEYS[0], config)[0])(
        params or make_params(bank, config)
    )
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.array(g) for path, g in flat}


def reference_pairs(num_towers: int):
    return {2: [(0, 1)], 3: [(0, 1), (1, 2), (2, 0)]}[num_towers]


def reference_terms(outputs, config, direction, crossed):
    """The table of losses in the method; direction 0 is a -> b, 1 is b -> a."""
    h, p, c = (np.asarray(a, np.float64) for a in (outputs.hidden, outputs.pooled, outputs.crossed))
    nce = functools.partial(reference_info_nce, temperature=config.temperature)
    terms = {"nce": sum(nce(x, x) for x in h), "icnce": 0.0, "ictm": 0.0}
    for a, b in reference_pairs(len(h)):
        first, second = (b, a) if direction else (a, b)
        terms["icnce"] += nce(h[first], h[second])
        if crossed:
            terms["icnce"] += nce(c[first], c[second])
        for x, y in ((a, b), (b, a)):
            terms["ictm"] += reference_ictm(h[x], h[y], p[x], p[y], config.modulus_half)
    return terms


def assert_terms(terms, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
