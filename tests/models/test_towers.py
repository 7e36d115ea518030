"""The bank against hand-written towers: a numpy loop, one sentence and one tower at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from loop_encoder import towers_by_loop

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.batch import Batch
from jtcse_jax.config import Config, ModelConfig
from jtcse_jax.errors import UserError
from jtcse_jax.models import towers
from jtcse_jax.models.towers import Bank

SMALL = Architecture(
    vocab_size=40,
    hidden_size=16,
    num_layers=4,
    num_heads=2,
    intermediate_size=24,
    max_positions=20,
    layer_norm_eps=1e-5,
)
SHORT = dataclasses.replace(SMALL, num_layers=2)  # dropout and gradients compile slowly
ROW = 16
random = np.random.default_rng(0)
SENTENCES = [random.integers(1, 40, length) for length in (5, 5, 9, 7, 2, 2, 8, 6)]


def random_params(bank, seed=0):
    """Parameters large enough that every one of them matters."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        centre = 1 if path[-1].key == "scale" else 0
        return jnp.asarray(random.normal(centre, 0.3, leaf.shape), jnp.float32)

    return jax.tree.map_with_path(draw, bank.abstract())


def identical(bank):
    """All towers as the first."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * bank.num_towers), random_params(bank))


def place(sentences, spots, num_rows, slots=3, row_length=ROW):
    """A batch with sentence i at spots[i] = (row, slot, start); everything else is filler."""
    tokens = np.zeros((num_rows, row_length), np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    cls_positions = np.zeros((num_rows, slots), np.int32)
    for sentence, (row, slot, start) in zip(sentences, spots, strict=True):
        span = slice(start, start + len(sentence))
        tokens[row, span] = sentence
        positions[row, span] = np.arange(len(sentence))
        segments[row, span] = slot + 1
        cls_positions[row, slot] = start
    order = np.array([row * slots + slot for row, slot, _ in spots], np.int32)
    return Batch(tokens, positions, segments, cls_positions, order, np.ones(len(order), bool))


# Slots out of order, a gap inside a row, an unused slot in each row, two rows of fillers alone.
SPOTS = [(0, 0, 0), (0, 1, 5), (1, 2, 0), (1, 0, 9), (0, 2, 10), (3, 1, 14), (3, 0, 1), (5, 0, 3)]


def packed(sentences=SENTENCES):
    return place(sentences, SPOTS, num_rows=8)


def padded(sentences=SENTENCES):
    return place(sentences, [(i, 0, 0) for i in range(len(sentences))], len(sentences), slots=1)


def bank_of(towers=2, mode="side", exchange="value", layers=2, **fields):
    cross = Cross(mode, exchange, layers)
    return Bank(**{"architecture": SMALL, "num_towers": towers, "cross": cross} | fields)


def run(bank, params, batch, key=None, crossed=True):
    return compiled(bank, crossed)(params, batch, key)


@functools.cache
def compiled(bank, crossed):
    return jax.jit(lambda params, batch, key: bank.apply(params, batch, key=key, crossed=crossed))


def assert_close(ours, reference, tolerance=1e-5):
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert ours.shape == reference.shape
    np.testing.assert_allclose(ours, reference, atol=tolerance * np.abs(reference).max(), rtol=0)


@pytest.mark.parametrize(
    ("num_towers", "mode", "exchange", "layers", "pooling", "family"),
    [
        (1, "side", "value", 2, "cls", "bert"),
        (2, "side", "value", 2, "cls", "bert"),
        (2, "side", "probs", 4, "mean", "bert"),
        (2, "main", "value", 1, "cls", "roberta"),
        (2, "main", "probs", 2, "mean", "bert"),
        (3, "side", "value", 2, "cls", "roberta"),
        (3, "side", "probs", 2, "cls", "bert"),
        (3, "main", "value", 4, "mean", "bert"),
    ],
)
def test_bank_equals_the_loop(num_towers, mode, exchange, layers, pooling, family):
    architecture = dataclasses.replace(SMALL, family=family)
    bank = bank_of(num_towers, mode, exchange, layers, pooling=pooling, architecture=architecture)
    params = random_params(bank)
    expected = towers_by_loop(architecture, params, SENTENCES, bank.cross, pooling)
    outputs = run(bank, params, packed())
    for ours, theirs in zip(outputs, expected, strict=True):
        assert_close(ours, theirs)
    assert {part.dtype for part in outputs} == {jnp.dtype("float32")}
    # Crossing must make a difference, or the comparison says nothing of it.
    plain = run(bank, params, packed(), crossed=False).hidden
    assert (num_towers == 1) == bool(np.allclose(plain, outputs.crossed, atol=1e-3))


@pytest.mark.parametrize("mode", ["side", "main"])
@pytest.mark.parametrize("exchange", ["value", "probs"])
def test_identical_towers_cross_to_themselves(mode, exchange):
    bank = bank_of(3, mode, exchange)
    params = identical(bank)
    outputs = run(bank, params, packed())
    plain = run(bank, params, packed(), crossed=False)
    assert_close(outputs.crossed, plain.hidden, 1e-6)
    assert_close(outputs.hidden, plain.hidden, 1e-6)


@pytest.mark.parametrize(
    "cross", [Cross("off"), Cross("side", "value", 0), Cross("main", "probs", 0)]
)
def test_no_crossed_layer_gives_the_plain_stream(cross):
    bank = bank_of(cross=cross, dropout=0.1, architecture=SHORT)
    params = random_params(bank)
    outputs = run(bank, params, packed(), jax.random.key(0))
    plain = run(bank, params, packed(), jax.random.key(0), crossed=False)
    np.testing.assert_array_equal(outputs.crossed, outputs.hidden)
    np.testing.assert_array_equal(outputs.hidden, plain.hidden)


def test_uneven_crossing_is_refused():
    bank = bank_of(layers=3)
    with pytest.raises(UserError, match=r"num_layers = 3 does not divide.*\[1, 2, 4\]"):
        run(bank, random_params(bank), packed())


@pytest.mark.parametrize(("num_towers", "mode", "dropout"), [(2, "side", 0.1), (4, "main", 0.0)])
def test_towers_on_their_own_devices_equal_towers_on_shared_ones(num_towers, mode, dropout):
    """Values and gradients, dropout masks included, on a ("tower", "data") mesh of 8 devices."""
    shared = bank_of(num_towers, mode, layers=1, architecture=SHORT, dropout=dropout)
    shape, names = (num_towers, 8 // num_towers), ("tower", "data")
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * 2)
    own = dataclasses.replace(shared, mesh=mesh)
    params, batch = random_params(shared), packed()
    weights = jax.random.normal(jax.random.key(5), (3, num_towers, len(SENTENCES), 16))

    def grad(bank):
        def loss(params, batch):
            outputs = bank.apply(params, batch, key=jax.random.key(7), crossed=True)
            return sum((w * x).sum() for w, x in zip(weights, outputs, strict=True)), outputs

        return jax.jit(jax.grad(loss, has_aux=True))

    def put(tree, *axes):
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))

    rows = put(tuple(batch[:4]), "data")
    gradient, outputs = grad(own)(put(params, "tower"), Batch(*rows, *put(tuple(batch[4:]))))
    expected_gradient, expected = grad(shared)(params, batch)
    jax.tree.map(assert_close, outputs, expected)
    biggest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradient))
    for ours, theirs in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * biggest)


@pytest.mark.parametrize(("exchange", "sent"), [("value", ["value"]), ("probs", ["key", "query"])])
def test_crossed_state_sends_gradient_to_the_neighbour(exchange, sent):
    """With layer 2 alone crossed, tower 0 uses that much of tower 1's layer 2 and no more."""
    bank = bank_of(3, exchange=exchange, layers=1, architecture=SHORT)
    params = random_params(bank)

    def reached(part):
        gradient = jax.jit(
            jax.grad(
                lambda params: (
                    getattr(bank.apply(params, packed(), crossed=True), part)[0] ** 3
                ).sum()
            )
        )(params)
        attention = gradient["layers"][1]["attention"]
        return [
            sorted(name for name in attention if np.abs(attention[name]["kernel"][tower]).max() > 0)
            for tower in range(3)
        ]

    everything = ["key", "output", "query", "value"]
    own = [name for name in everything if name not in sent]
    assert reached("crossed") == [own, sent, []]
    assert reached("hidden") == [everything, [], []]


@pytest.mark.parametrize("rates", [{"dropout": 0.1}, {"attention_dropout": 0.1}])
@pytest.mark.parametrize("generator", ["threefry2x32", "rbg"])
def test_dropout_differs_between_towers_and_between_views(rates, generator):
    bank = bank_of(layers=1, architecture=SHORT, **rates)
    params = identical(bank)
    # Views 0 and 1 share a row; views 2 and 3 stand at the same place of different rows.
    spots = [(0, 0, 0), (0, 1, 8), (1, 0, 0), (2, 0, 0)]
    batch = place([SENTENCES[0]] * 4, spots, num_rows=3)
    hidden = run(bank, params, batch, jax.random.key(0, impl=generator)).hidden
    for one, other in [
        (hidden[0], hidden[1]),  # equal towers
        (hidden[:, 0], hidden[:, 1]),
        (hidden[:, 2], hidden[:, 3]),
        (hidden, run(bank, params, batch, jax.random.key(1, impl=generator)).hidden),
    ]:
        assert (np.abs(one - other).max(axis=-1) > 1e-3).all()
    still = run(bank, params, batch).hidden
    assert_close(still, jnp.broadcast_to(still[:1, :1], still.shape), 1e-6)


def test_crossed_stream_shares_masks_until_it_crosses_and_draws_its_own_after():
    """A layer whose output dense is zero drops nothing visible: it shows what came before it."""
    bank = bank_of(layers=1, architecture=SHORT, dropout=0.3, attention_dropout=0.3)

    def silence(params, *names):
        layer = params["layers"][1]
        for name in names:
            part = layer["attention"]["output"] if name == "attention" else layer["output"]
            part |= jax.tree.map(jnp.zeros_like, part)
        return params

    key = jax.random.key(3)
    before = run(bank, silence(random_params(bank), "attention", "output"), packed(), key)
    assert_close(before.crossed, before.hidden, 1e-6)
    assert np.abs(before.hidden - run(bank, random_params(bank), packed()).hidden).max() > 0.1
    # Nothing is exchanged here, so that only the masks of the last layer can differ.
    after = run(bank, silence(random_params(bank), "attention"), packed(), key)
    assert (np.abs(after.crossed - after.hidden).max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_packed_equals_padded_in_values_and_gradients(pooling):
    bank = bank_of(layers=1, architecture=SHORT, pooling=pooling)
    params = random_params(bank)
    weights = jax.random.normal(jax.random.key(5), (3, 2, len(SENTENCES), 16))

    def grad(batch):
        def loss(params):
            outputs = bank.apply(params, batch, crossed=True)
            return sum((w * x).sum() for w, x in zip(weights, outputs, strict=True)), outputs

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    (gradient, outputs), (padded_gradient, padded_outputs) = grad(packed()), grad(padded())
    jax.tree.map(assert_close, outputs, padded_outputs)
    biggest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(padded_gradient))
    for ours, theirs in zip(*map(jax.tree.leaves, (gradient, padded_gradient)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * biggest)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_neighbour_changes_neither_embedding_nor_gradient(pooling):
    """Each sentence has words of its own: no other word may have a gradient, nor any position."""
    bank = bank_of(layers=1, architecture=SHORT, pooling=pooling)
    params = random_params(bank)
    # Sentence 0 shares its row with sentences 1 and 4; token 0 is the filler.
    own = [
        np.arange(1, 6),
        np.arange(6, 11),
        *(random.integers(11, 40, len(s)) for s in SENTENCES[2:]),
    ]
    batch = packed(own)

    @jax.jit
    def outputs_and_gradient(params, batch):
        def first(params):
            outputs = bank.apply(params, batch, crossed=True)
            return sum((x[:, 0] ** 3).sum() for x in outputs), outputs

        gradient, outputs = jax.grad(first, has_aux=True)(params)
        return outputs, gradient["embeddings"]

    outputs, gradient = outputs_and_gradient(params, batch)
    words = np.abs(gradient["word"]["embedding"]).max(axis=(0, 2))
    assert (words[1:6] > 0).all() and (words[:1] == 0).all() and (words[6:] == 0).all()
    positions = np.abs(gradient["position"]["embedding"]).max(axis=(0, 2))
    assert (positions[:5] > 0).all() and (positions[5:] == 0).all()

    other = own[:1] + [random.integers(11, 40, len(s)) for s in own[1:]]
    assert not np.array_equal(other[1], own[1])
    changed, changed_gradient = outputs_and_gradient(params, packed(other))
    for one, two in zip(outputs, changed, strict=True):
        np.testing.assert_array_equal(one[:, 0], two[:, 0])
        assert (np.abs(one[:, 1:] - two[:, 1:]).max(axis=-1) > 1e-3).all()
    jax.tree.map(np.testing.assert_array_equal, gradient, changed_gradient)


@pytest.mark.parametrize(("pooling", "dtype"), [("cls", "float32"), ("mean", "bfloat16")])
def test_fillers_and_unused_slots_are_harmless(pooling, dtype):
    """Empty rows, empty slots, and sentences of a partial batch whose order points to slot 0."""
    bank = bank_of(layers=1, architecture=SHORT, pooling=pooling, compute_dtype=dtype, dropout=0.1)
    batch = place(SENTENCES[:2], [(1, 0, 0), (1, 2, 8)], num_rows=3)
    batch = batch._replace(
        order=np.append(batch.order, [0, 0]).astype(np.int32), mask=np.array([1, 0], bool)
    )

    def loss(params, key):
        outputs = bank.apply(params, batch, key=key, crossed=True)
        return sum((x**2).sum() for x in outputs), outputs

    grad = jax.jit(jax.grad(loss, has_aux=True))
    for leaf in jax.tree.leaves(grad(random_params(bank), jax.random.key(0))):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()


def test_bfloat16_is_close_to_float32():
    bank = bank_of()
    params = random_params(bank)
    half = run(bank_of(compute_dtype="bfloat16"), params, packed())
    for ours, exact in zip(half, run(bank, params, packed()), strict=True):
        assert ours.dtype == jnp.float32
        assert np.linalg.norm(ours - exact) < 2e-2 * np.linalg.norm(exact)
        assert np.abs(ours - exact).max() > 0


def test_new_parameters():
    bank = bank_of(3, architecture=SHORT)
    params = bank.init(0)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params)} == {3}
    words = np.asarray(params["embeddings"]["word"]["embedding"])
    kernel = np.asarray(params["layers"][1]["intermediate"]["kernel"])
    for weights in (words, kernel):
        assert abs(weights.std() - 0.02) < 0.002
        assert not any(np.array_equal(weights[i], weights[i - 1]) for i in range(3))
    np.testing.assert_array_equal(params["layers"][0]["output_norm"]["scale"], 1)
    np.testing.assert_array_equal(params["pooler"]["bias"], 0)
    jax.tree.map(np.testing.assert_array_equal, bank.init(0), params)
    assert not np.array_equal(bank.init(1)["pooler"]["kernel"], params["pooler"]["kernel"])


def test_stack_and_unstack():
    params = random_params(bank_of(3))
    parts = towers.unstack(params)
    assert len(parts) == 3
    np.testing.assert_array_equal(parts[1]["pooler"]["bias"], params["pooler"]["bias"][1])
    jax.tree.map(np.testing.assert_array_equal, towers.stack(parts), params)


def test_sentence_embedding_is_the_sum_of_the_towers():
    hidden = random.normal(size=(3, 5, 4)).astype("f4")
    np.testing.assert_allclose(
        towers.sum_towers(jnp.asarray(hidden)), hidden[0] + hidden[1] + hidden[2], rtol=1e-6
    )


def test_from_config():
    model = ModelConfig(
        towers=("a", "b", "c"),
        dropout=0.2,
        attention_dropout=0.3,
        compute_dtype="bfloat16",
        cross=Cross("main", "probs", 2),
    )
    bank = Bank.from_config(Config(model=model).model, SMALL, pooling="mean")
    assert bank == Bank(SMALL, 3, "mean", 0.2, 0.3, "bfloat16", Cross("main", "probs", 2), None)


def test_neighbours_of_more_than_two_towers_are_a_ring():
    assert towers.neighbours(2) == [(0, 1)]
    assert towers.neighbours(4) == [(0, 1), (1, 2), (2, 3), (3, 0)]
