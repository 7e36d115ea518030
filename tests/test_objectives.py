"""Objectives against sums written from the method, over the bank's own outputs.

The bank is not jitted, and compiled without optimizations: the time goes into compiling.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_losses import (
    reference_alignment,
    reference_ictm,
    reference_info_nce,
    reference_other_view,
    reference_uniformity,
)

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.models.towers import Bank, TowerOutputs
from jtcse_jax.training import objectives

pytestmark = pytest.mark.usefixtures("quick_compilation")

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


def make_batch(views: list[list[int]] = VIEWS, mask: list[bool] | None = None) -> Batch:
    """A batch of the first len(views) views of ROWS, packed by hand."""
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
    exists = np.ones(len(views), bool) if mask is None else np.array(mask)
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


def has(path, *names):
    return all(name in path.split("/") for name in names)


@pytest.mark.parametrize(
    "cross, dropout",
    [(SIDE, 0.1), (Cross("side", "probs", 1), 0.0), (Cross("main", "value", 1), 0.0)],
    ids=str,
)
def test_jtcse_is_the_sum_of_the_method(cross, dropout):
    """On either side of the coin, which turns both terms at once."""
    config = ObjectiveConfig(temperature=0.1)
    bank = make_bank(2, cross, dropout=dropout, attention_dropout=dropout)
    coins = set()
    for key in KEYS:
        loss, terms, outputs = run(bank, config, make_batch(), key)
        same = np.array_equal(outputs.hidden, outputs.crossed)
        assert same == (cross.mode == "main")
        coins.add(assert_jtcse(loss, terms, outputs, config))
    assert coins == {0, 1}


def test_jtcse_of_three_towers_turns_the_whole_ring():
    config = ObjectiveConfig(temperature=0.1, modulus_half=False)
    outputs = make_outputs(3)
    coins = set()
    for key in KEYS:
        loss, terms = objectives.OBJECTIVES["jtcse"](
            GivenOutputs(), {"towers": outputs}, make_batch(), key, config
        )
        coins.add(assert_jtcse(loss, terms, outputs, config))
    assert coins == {0, 1}


def assert_jtcse(loss, terms, outputs, config):
    """The loss is the method's for one side of the coin; which, is returned."""
    sides = [reference_terms(outputs, config, coin, crossed=True) for coin in (0, 1)]
    assert abs(sides[0]["icnce"] - sides[1]["icnce"]) > 1e-2
    coin = int(np.argmin([abs(terms["icnce"] - side["icnce"]) for side in sides]))
    assert_terms(terms, sides[coin])
    np.testing.assert_allclose(loss, sum(sides[coin].values()), rtol=1e-4)
    return coin


def test_tncse_has_no_crossed_term_and_one_direction():
    """Also where the bank could cross; with any key."""
    config = ObjectiveConfig(name="tncse", temperature=0.1)
    bank = make_bank(dropout=0.1, attention_dropout=0.1)
    for key in KEYS:
        loss, terms, outputs = run(bank, config, make_batch(), key)
        expected = reference_terms(outputs, config, 0, crossed=False)
        assert_terms(terms, expected)
        np.testing.assert_allclose(loss, sum(expected.values()), rtol=1e-4)


def test_tncse_of_three_towers_is_a_ring():
    config = ObjectiveConfig(name="tncse", temperature=0.1, modulus_half=False)
    outputs = make_outputs(3)
    loss, terms = objectives.OBJECTIVES["tncse"](
        GivenOutputs(), {"towers": outputs}, make_batch(), KEYS[0], config
    )
    expected = reference_terms(outputs, config, 0, crossed=False)
    assert_terms(terms, expected)
    np.testing.assert_allclose(loss, sum(expected.values()), rtol=1e-4)


@pytest.mark.parametrize("negatives", ["other_view", "all"])
@pytest.mark.parametrize("mlp_head", [False, True])
def test_simcse_is_one_nce_a_tower(negatives, mlp_head):
    config = ObjectiveConfig("simcse", 0.1, simcse_negatives=negatives, mlp_head=mlp_head)
    bank = make_bank(dropout=0.1)
    loss, terms, outputs = run(bank, config, make_batch())
    vectors = outputs.hidden.astype(np.float64)
    if mlp_head:
        head = make_params(bank, config)["head"]
        vectors = np.stack(
            [
                np.tanh(x @ np.asarray(kernel) + np.asarray(bias))
                for x, kernel, bias in zip(vectors, head["kernel"], head["bias"], strict=True)
            ]
        )
    nce = reference_info_nce if negatives == "all" else reference_other_view
    expected = sum(nce(x, x, 0.1) for x in vectors)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(terms["nce"], expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["simcse", "tncse", "jtcse"])
def test_mlp_head_belongs_to_simcse_alone(name):
    """One dense layer a tower, small as the other weights, different for each tower, trained."""
    config = ObjectiveConfig(name, mlp_head=True)
    bank = make_bank()
    params = objectives.init_params(bank, make_towers(), jax.random.key(1), config)
    if name != "simcse":
        assert set(params) == {"towers"}
        return
    kernel, bias = params["head"]["kernel"], params["head"]["bias"]
    assert kernel.shape == (2, 16, 16) and bias.shape == (2, 16)
    assert kernel.dtype == bias.dtype == jnp.float32
    np.testing.assert_allclose(jnp.std(kernel), 0.02, rtol=0.2)
    assert not np.array_equal(kernel[0], kernel[1]) and not bias.any()
    grads = gradients(bank, config, make_batch())
    for tower in (0, 1):
        assert np.abs(grads["head/kernel"][tower]).max() > 1e-4
    plain = objectives.init_params(bank, make_towers(), jax.random.key(1), ObjectiveConfig(name))
    assert set(plain) == {"towers"}


@pytest.mark.parametrize("name", ["simcse", "tncse", "jtcse"])
def test_terms_show_the_health_of_the_summed_embedding(name):
    _, terms, outputs = run(make_bank(), ObjectiveConfig(name), make_batch())
    embedding = outputs.hidden[0].astype(np.float64) + outputs.hidden[1]
    expected = {
        "alignment": reference_alignment(embedding),
        "uniformity": reference_uniformity(embedding[0::2]),
    }
    assert_terms(terms, expected)


@pytest.mark.parametrize("name", ["tncse", "jtcse"])
def test_weights_multiply_their_terms(name):
    config = ObjectiveConfig(name, nce_weight=0.3, icnce_weight=7.0, ictm_weight=50.0)
    loss, terms, _ = run(make_bank(), config, make_batch())
    _, unweighted, _ = run(make_bank(), ObjectiveConfig(name), make_batch())
    assert_terms(terms, unweighted)
    expected = 0.3 * terms["nce"] + 7 * terms["icnce"] + 50 * terms["ictm"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["tncse", "jtcse"])
def test_poolers_learn_from_ictm_alone(name):
    with_ictm = gradients(make_bank(), ObjectiveConfig(name), make_batch())
    without = gradients(make_bank(), ObjectiveConfig(name, ictm_weight=0.0), make_batch())
    poolers = [path for path in without if has(path, "pooler")]
    assert len(poolers) == 2
    for path in poolers:
        np.testing.assert_array_equal(without[path], 0)
        for tower in (0, 1):
            assert np.abs(with_ictm[path][tower]).max() > 1e-4
    # Everything else learns without it, but for a key's bias, which softmax cannot see, and for
    # embeddings of what the batch does not hold.
    for path, gradient in without.items():
        if not has(path, "pooler") and not has(path, "key", "bias"):
            assert np.abs(gradient).max() > 1e-4, path


@pytest.mark.parametrize("exchange, projection", [("value", "value"), ("probs", "query")])
def test_crossed_term_teaches_the_neighbour(exchange, projection):
    """With one layer, what tower 1 lends to tower 0 reaches its crossed stream nowhere else.

    So the crossed term's gradient, the difference to the same loss without crossing, vanishes in
    the lent projection if the exchange does not carry gradients back.
    """
    config = ObjectiveConfig(nce_weight=0.0, ictm_weight=0.0, temperature=0.5)
    crossing, plain = (
        gradients(make_bank(2, Cross(mode, exchange, 1)), config, make_batch())
        for mode in ("side", "off")
    )
    [path] = [p for p in crossing if has(p, projection, "kernel")]
    for tower in (0, 1):
        assert np.abs(crossing[path][tower] - plain[path][tower]).max() > 1e-3


def test_jtcse_without_crossing_is_tncse_up_to_the_coin():
    config = ObjectiveConfig(temperature=0.1)
    off = [run(make_bank(2, Cross("off")), config, make_batch(), key)[0] for key in KEYS]
    tncse = ObjectiveConfig(name="tncse", temperature=0.1)
    loss, terms, outputs = run(make_bank(), tncse, make_batch())
    turned = loss - terms["icnce"] + reference_terms(outputs, config, 1, crossed=False)["icnce"]
    assert abs(turned - loss) > 1e-2
    as_tncse = np.isclose(off, loss, rtol=1e-5)
    assert as_tncse.any() and not as_tncse.all()
    np.testing.assert_allclose(np.array(off)[~as_tncse], turned, rtol=1e-4)


def test_no_crossed_layer_counts_the_plain_term_twice():
    """The crossed state then is the plain one, by the method's definition."""
    for key in KEYS[:2]:
        _, once, _ = run(make_bank(2, Cross("off")), ObjectiveConfig(), make_batch(), key)
        none = Cross("side", "value", 0)
        _, twice, _ = run(make_bank(2, none), ObjectiveConfig(), make_batch(), key)
        np.testing.assert_allclose(twice["icnce"], 2 * once["icnce"], rtol=1e-6)
        np.testing.assert_allclose(twice["nce"], once["nce"], rtol=1e-6)


def test_coin_is_fair():
    """Of 256 keys about half turn the direction: within four standard deviations."""
    config = ObjectiveConfig(nce_weight=0.0, ictm_weight=0.0)
    params, batch = {"towers": make_outputs(2)}, make_batch()
    loss = jax.jit(
        lambda key: objectives.OBJECTIVES["jtcse"](GivenOutputs(), params, batch, key, config)[0]
    )
    found = np.array([loss(key) for key in jax.random.split(KEYS[0], 256)])
    high = np.isclose(found, found.max(), rtol=1e-5)
    np.testing.assert_allclose(found[~high], found.min(), rtol=1e-5)
    assert abs(high.sum() - 128) < 32


@pytest.mark.parametrize(
    "config",
    [
        ObjectiveConfig("simcse", 1.0),
        ObjectiveConfig("simcse", 1.0, simcse_negatives="all"),
        ObjectiveConfig("tncse", 1.0),
        ObjectiveConfig("jtcse", 1.0),
    ],
    ids=lambda c: f"{c.name}-{c.simcse_negatives}",
)
def test_negatives_per_anchor_are_those_the_loss_counts(config):
    """Where all sentences are one, NCE is log(1 + negatives) in every tower."""
    _, terms, _ = run(make_bank(), config, make_batch([[1, 5, 2]] * 6))
    counted = np.exp(terms["nce"] / 2) - 1
    np.testing.assert_allclose(objectives.negatives_per_anchor(3, config), counted, rtol=1e-4)
