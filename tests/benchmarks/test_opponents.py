"""The PyTorch trainers of the benchmarks compute what ours does, so that only time differs."""

import functools

import jax
import numpy as np
import pytest
from runs import largest_difference

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.models.towers import Bank, TowerOutputs, stack, unstack
from jtcse_jax.store import hf_weights
from jtcse_jax.training import objectives, terms

torch = pytest.importorskip("torch", reason="the opponents run on torch")
transformers = pytest.importorskip("transformers")

from benchmarks.opponents import method, published, well_made  # noqa: E402

torch.set_num_threads(1)  # threads that wait for each other cost more than these models

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = Architecture(
    vocab_size=60,
    hidden_size=16,
    num_layers=4,
    num_heads=2,
    intermediate_size=24,
    max_positions=32,
    pad_token_id=0,
)
MAX_LEN = 24
LENGTHS = (5, 20, 3, 9, 8, 12, 17)
RATE, DECAY = 1e-3, 0.01  # DECAY: torch's own default, and ours
HEADS, TAILS = 0, 2  # seeds
OPPONENTS = {
    "published": published.Trainer,
    "well_made": well_made.Trainer,
    "four_groups": functools.partial(well_made.Trainer, groups=4),
}
LOSSES = {"published": published.total_loss, "well_made": well_made.total_loss}


@functools.cache
def sentences() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(1, SHAPE.vocab_size, length).tolist() for length in LENGTHS]


@functools.cache
def make_towers():
    """Two towers whose weights all matter, alike enough for cosines of both signs."""
    random = np.random.default_rng(1)

    def draw(path, leaf):
        shared = random.normal(path[-1].key == "scale", 0.3, leaf.shape[1:])
        return (shared + 0.15 * random.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map_with_path(draw, make_bank(None).abstract())


def make_bank(crossed_layers: int | None) -> Bank:
    cross = Cross("off") if crossed_layers is None else Cross(num_layers=crossed_layers)
    return Bank(SHAPE, 2, cross=cross)


@functools.cache
def batch() -> Batch:
    """Both views of every sentence, one a row."""
    views = [sentence for sentence in sentences() for _ in range(2)]
    tokens = np.zeros((len(views), MAX_LEN), np.int32)
    for row, view in zip(tokens, views, strict=True):
        row[: len(view)] = view
    segments = (np.arange(MAX_LEN) < np.array([[len(view)] for view in views])).astype(np.int32)
    positions = np.arange(MAX_LEN, dtype=np.int32) * segments
    cls = np.zeros((len(views), 1), np.int32)
    order = np.arange(len(views), dtype=np.int32)
    return Batch(tokens, positions, segments, cls, order, np.ones(len(views) // 2, bool))


@functools.cache
def our_loss(objective: str, crossed_layers: int | None):
    """The loss as a function of the towers and the step's key."""
    bank, config = make_bank(crossed_layers), ObjectiveConfig(name=objective)

    def loss(towers, key):
        return objectives.OBJECTIVES[objective](bank, {"towers": towers}, batch(), key, config)[0]

    return jax.jit(loss)


@functools.cache
def our_step():
    """Loss of JTCSE with HEADS, and its gradients."""
    return jax.jit(jax.value_and_grad(our_loss("jtcse", 2)))(make_towers(), jax.random.key(HEADS))


def turned(seed: int) -> bool:
    """Whether the coin of the step with this seed turns the direction."""
    return bool(jax.random.bernoulli(jax.random.split(jax.random.key(seed))[1]))


def opponent(name: str, folder, objective: str, crossed_layers: int | None, **options):
    """A trainer that starts from our towers, without dropout."""
    towers = []
    for number, params in enumerate(unstack(make_towers())):
        hf_weights.write_tower(folder / str(number), SHAPE, params)
        towers.append(transformers.BertModel.from_pretrained(folder / str(number)))
    cross = make_bank(crossed_layers).cross
    return OPPONENTS[name](
        towers,
        objective=objective,
        cross_interval=cross.interval(SHAPE.num_layers),
        dropout=0.0,
        attention_dropout=0.0,
        learning_rate=RATE,
        max_len=MAX_LEN,
        **options,
    )


def their_towers(trainer, folder):
    """The trainer's weights as our parameters."""
    for number, tower in enumerate(trainer.towers):
        tower.save_pretrained(folder / f"after{number}")
    return stack([hf_weights.read_tower(folder / f"after{n}", SHAPE) for n in range(2)])


@pytest.mark.parametrize("name", OPPONENTS)
@pytest.mark.parametrize(
    ("objective", "crossed_layers", "seed"),
    [("tncse", None, 0), ("jtcse", 2, HEADS), ("jtcse", 2, TAILS), ("jtcse", 4, TAILS)],
)
def test_loss_is_ours(tmp_path, name, objective, crossed_layers, seed):
    value = float(our_loss(objective, crossed_layers)(make_towers(), jax.random.key(seed)))
    flip = objective == "jtcse" and turned(seed)
    trainer = opponent(name, tmp_path, objective, crossed_layers)
    assert trainer.loss(sentences(), flip).item() == pytest.approx(value, rel=1e-4)
    if objective == "jtcse":
        assert trainer.loss(sentences(), not flip).item() != pytest.approx(value, rel=1e-3)


def test_the_seeds_above_are_both_sides_of_the_coin():
    assert [turned(seed) for seed in (HEADS, TAILS)] == [True, False]


@pytest.mark.parametrize("name", OPPONENTS)
def test_one_step_moves_every_weight_as_ours(tmp_path, name):
    before = make_towers()
    value, gradients = our_step()
    trainer = opponent(name, tmp_path, "jtcse", 2)
    trainer.coin.random = lambda: 0.0  # turned, as HEADS
    assert float(trainer.step(sentences())) == pytest.approx(float(value), rel=1e-4)
    after = their_towers(trainer, tmp_path)
    moved = jax.tree.map(lambda new, old: new - (1 - RATE * DECAY) * old, after, before)
    # The first step of Adam is the gradient's sign: where it is nearly 0, so is nothing.
    certain = jax.tree.map(lambda gradient: np.abs(gradient) > 1e-4, gradients)
    moved, expected = (
        jax.tree.map(np.multiply, tree, certain)
        for tree in (moved, jax.tree.map(lambda gradient: -RATE * np.sign(gradient), gradients))
    )
    assert largest_difference(moved, expected) < 0.02 * RATE
    still = [path for path, leaf in jax.tree.leaves_with_path(moved) if not np.any(leaf)]
    # Softmax does not see what is added to all keys.
    assert {jax.tree_util.keystr(path[-2:], simple=True) for path in still} == {"keybias"}


@pytest.mark.parametrize("name", OPPONENTS)
def test_bfloat16_is_near_float32_and_another_number(tmp_path, name):
    one, two = (
        opponent(name, tmp_path, "jtcse", 2, dtype=dtype).loss(sentences(), False).item()
        for dtype in ("float32", "bfloat16")
    )
    assert one != two and one == pytest.approx(two, rel=0.02)


def test_only_the_compiled_one_is_compiled(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    opponent("well_made", tmp_path, "tncse", None)
    assert not compiled
    opponent("well_made", tmp_path, "tncse", None, compiled=True)
    assert len(compiled) == 3


@pytest.mark.parametrize("name", OPPONENTS)
def test_dropout_reaches_hidden_states_and_attention(tmp_path, name):
    trainer = opponent(name, tmp_path, "jtcse", 2)
    for rates in ((0.1, 0.0), (0.0, 0.1)):
        method.prepare(trainer.towers, "eager", *rates)
        first, second = (trainer.loss(sentences(), False).item() for _ in range(2))
        assert first != second


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_opposite_vectors_are_ours(name):
    """A negative cosine between the towers is the constant of the scripts, without gradient."""
    random = np.random.default_rng(2)
    hidden, pooled = random.normal(size=(2, 2, 8, 6)).astype(np.float32)
    hidden[1] = -hidden[0].reshape(4, 2, 6)[:, ::-1].reshape(8, 6)

    def loss(hidden):
        outputs = TowerOutputs(hidden, pooled, hidden)
        rows = batch()._replace(mask=np.ones(4, bool))
        config = ObjectiveConfig(name="tncse")
        within = terms.within_towers(hidden, rows, config)
        between = terms.between_towers(hidden, rows, config)
        return within + between + terms.tensor_modulus(outputs, rows, config)

    value, gradient = jax.jit(jax.value_and_grad(loss))(hidden)
    theirs = torch.tensor(hidden, requires_grad=True)
    other = LOSSES[name](theirs, torch.tensor(pooled), None, flip=False, temperature=0.05)
    other.backward()
    assert other.item() == pytest.approx(float(value), rel=1e-4)
    np.testing.assert_allclose(theirs.grad, gradient, rtol=1e-3, atol=1e-4)
