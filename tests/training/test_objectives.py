"""Objectives against sums written from the method, over the bank's own outputs.

The bank is not jitted, and compiled without optimizations: the time goes into compiling.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_cases import (
    KEYS,
    SIDE,
    GivenOutputs,
    assert_terms,
    gradients,
    make_bank,
    make_batch,
    make_outputs,
    make_params,
    make_towers,
    reference_terms,
    run,
)
from reference_losses import (
    reference_alignment,
    reference_info_nce,
    reference_other_view,
    reference_uniformity,
)

from jtcse_jax.architecture import Cross
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.errors import UserError
from jtcse_jax.training import objectives

pytestmark = pytest.mark.usefixtures("quick_compilation")


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
    np.testing.assert_allclose(objectives.negatives_per_anchor(3, 2, config), counted, rtol=1e-4)


def first(outputs, count):
    """The outputs of towers whose vectors have only `count` components."""
    return outputs._replace(
        hidden=outputs.hidden[..., :count], crossed=outputs.crossed[..., :count]
    )


def test_matryoshka_is_the_sum_over_the_first_components():
    """Against the method's sums for each cut; the pooler's outputs are not cut."""
    config = ObjectiveConfig(temperature=0.1, matryoshka=(3, 8, 5))
    outputs = make_outputs(2)
    loss, terms = objectives.OBJECTIVES["jtcse"](
        GivenOutputs(), {"towers": outputs}, make_batch(), KEYS[0], config
    )
    sides = [
        {d: reference_terms(first(outputs, d), config, coin, crossed=True) for d in (3, 5, 8)}
        for coin in (0, 1)
    ]
    coin = int(np.argmin([abs(terms["icnce"] - side[8]["icnce"]) for side in sides]))
    assert_terms(terms, sides[coin][8])
    expected = {d: sum(side.values()) for d, side in sides[coin].items()}
    assert_terms(terms, {f"loss_at_{d}": value for d, value in expected.items()})
    np.testing.assert_allclose(loss, sum(expected.values()), rtol=1e-4)


@pytest.mark.parametrize("name", ["simcse", "tncse", "distill"])
def test_matryoshka_of_one_cut_is_the_objective_on_cut_vectors(name):
    """And a list of the whole width alone changes nothing."""
    teacher = {"teacher": "x"} if name == "distill" else {}
    config = ObjectiveConfig(name, 0.1, **teacher)
    batch = make_batch()._replace(target=np.asarray(sum(make_outputs(2).hidden)))

    def loss(outputs, matryoshka=(), batch=batch):
        changed = dataclasses.replace(config, matryoshka=matryoshka)
        return objectives.OBJECTIVES[name](
            GivenOutputs(), {"towers": outputs}, batch, KEYS[0], changed
        )[0]

    outputs = make_outputs(2)
    cut = batch._replace(target=batch.target[:, :5])
    np.testing.assert_allclose(loss(outputs, (5,)), loss(first(outputs, 5), batch=cut), rtol=1e-6)
    np.testing.assert_allclose(loss(outputs, (8,)), loss(outputs), rtol=1e-6)


def test_matryoshka_is_refused_by_its_field():
    for wrong in (
        {"matryoshka": (0,)},
        {"matryoshka": (4, 4)},
        {"name": "mlm", "matryoshka": (4,)},
    ):
        with pytest.raises(UserError, match=r"objective\.matryoshka"):
            ObjectiveConfig(**wrong)
    with pytest.raises(UserError, match=r"objective\.matryoshka"):
        make_params(make_bank(), ObjectiveConfig(matryoshka=(16, 17)))
