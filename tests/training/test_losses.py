"""Losses against slow loops written from the papers' formulas, in float64.

The references at the top share no code with `losses.py`; gradients are compared with central
differences of the references, not of the code under test.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference_losses import (
    TEMPERATURE,
    reference_alignment,
    reference_ictm,
    reference_info_nce,
    reference_other_view,
    reference_uniformity,
)

from jtcse_jax.training import losses

SENTENCES, SIZE = 4, 3
few_examples = settings(max_examples=25, deadline=None, derandomize=True)


class Case(NamedTuple):
    """A loss, its reference, and how many arrays [2B, D] both take."""

    loss: Callable
    reference: Callable
    arrays: int


CASES = {
    "info_nce": Case(
        functools.partial(losses.info_nce, temperature=TEMPERATURE), reference_info_nce, 2
    ),
    "other_view": Case(
        functools.partial(losses.info_nce_other_view, temperature=TEMPERATURE),
        reference_other_view,
        2,
    ),
    "ictm": Case(losses.ictm, reference_ictm, 4),
    "ictm_whole_modulus": Case(
        functools.partial(losses.ictm, modulus_half=False),
        functools.partial(reference_ictm, modulus_half=False),
        4,
    ),
    "alignment": Case(losses.alignment, reference_alignment, 1),
    "uniformity": Case(losses.uniformity, reference_uniformity, 1),
}
every_loss = pytest.mark.parametrize("name", CASES)
each_loss_once = pytest.mark.parametrize("name", [n for n in CASES if n != "ictm_whole_modulus"])


def evaluate(name: str, arrays: list, mask: np.ndarray | None = None):
    """Value and gradients, as numpy arrays."""
    return jax.tree.map(np.asarray, compiled(name)(arrays, mask))


@functools.cache
def compiled(name: str) -> Callable:
    def value(arrays, mask):
        return CASES[name].loss(*arrays, mask=mask)

    return jax.jit(jax.value_and_grad(value))


def views(seed: int, arrays: int, sentences: int = SENTENCES) -> list[np.ndarray]:
    """Arrays [2B, D] alike enough for positive cosines, but for sentence 0's, made negative."""
    rng = np.random.default_rng(seed)
    base = np.repeat(rng.normal(size=(sentences, SIZE)), 2, axis=0)
    out = []
    for _ in range(arrays):
        array = rng.uniform(1, 3) * base + 0.4 * rng.normal(size=base.shape)
        array[1] = -array[0] + 0.2 * rng.normal(size=SIZE)
        out.append(array.astype(np.float32))
    return out


def wide(arrays):
    return [np.asarray(a, np.float64) for a in arrays]


@every_loss
@pytest.mark.parametrize("seed", [0, 1])
def test_value_equals_slow_loop(name, seed):
    arrays = views(seed, CASES[name].arrays)
    value, _ = evaluate(name, arrays)
    assert value.dtype == jnp.float32 and value.shape == ()
    np.testing.assert_allclose(value, CASES[name].reference(*wide(arrays)), rtol=2e-5)


@every_loss
def test_gradient_equals_central_differences_of_the_loop(name):
    case = CASES[name]
    arrays = views(2, case.arrays)
    _, gradients = evaluate(name, arrays)
    for number, gradient in enumerate(gradients):
        expected = np.zeros(gradient.shape)
        for index in np.ndindex(gradient.shape):
            moved = wide(arrays)
            moved[number][index] += 1e-6
            above = case.reference(*moved)
            moved[number][index] -= 2e-6
            expected[index] = (above - case.reference(*moved)) / 2e-6
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


def test_values_computed_by_hand():
    """Two sentences on two axes at temperature 1, and a 3-4-5 triangle of moduli."""
    axes = jnp.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    e = math.e
    # Each anchor: its partner at cosine 1, two others at cosine 0.
    all_others = jax.jit(functools.partial(losses.info_nce, temperature=1.0))
    np.testing.assert_allclose(all_others(axes, axes), math.log((e + 2) / e), rtol=1e-6)
    # Each anchor: its partner at cosine 1, one other at cosine 0.
    other_view = jax.jit(functools.partial(losses.info_nce_other_view, temperature=1.0))
    np.testing.assert_allclose(other_view(axes, axes), math.log((e + 1) / e), rtol=1e-6)
    # Even rows of x meet odd rows of y at 45 degrees; the rows that must not be read are NaN.
    nan = [math.nan, math.nan]
    x, y = jnp.array([[1.0, 0], nan, [0, 1], nan]), jnp.array([nan, [1.0, 1], nan, [1, 1]])
    p, q = jnp.array([[3.0, 0], nan, [3, 0], nan]), jnp.array([nan, [0, 4.0], nan, [0, 4]])
    whole = math.log(math.sqrt(2)) * 5 / 7
    ictm = jax.jit(losses.ictm, static_argnames="modulus_half")
    np.testing.assert_allclose(ictm(x, y, p, q), whole / 2, rtol=1e-6)
    np.testing.assert_allclose(ictm(x, y, p, q, modulus_half=False), whole, rtol=1e-6)
    # Views that coincide, at a right angle, opposite.
    alignment = jax.jit(losses.alignment)
    np.testing.assert_allclose(alignment(jnp.array([[2.0, 2], [3, 3]])), 0, atol=1e-6)
    np.testing.assert_allclose(alignment(jnp.array([[2.0, 0], [0, 3]])), 2, rtol=1e-6)
    np.testing.assert_allclose(alignment(jnp.array([[2.0, 0], [-3, 0]])), 4, rtol=1e-6)
    # Squared distance 2 between orthogonal rows, 4 between opposite ones.
    uniformity = jax.jit(losses.uniformity)
    np.testing.assert_allclose(uniformity(jnp.array([[2.0, 0], [0, 3]])), -4, rtol=1e-6)
    np.testing.assert_allclose(uniformity(jnp.array([[2.0, 0], [-3, 0]])), -8, rtol=1e-6)


@each_loss_once
@few_examples
@given(
    seed=st.integers(0, 999),
    exponents=hnp.arrays(np.float64, 2 * SENTENCES, elements=st.floats(-4, 15)),
    modulus=st.floats(-3, 3),
)
def test_positive_scales_leave_the_loss(name, seed, exponents, modulus):
    """Any scale of each sentence vector, and one common scale of the pooler outputs."""
    arrays = views(seed, CASES[name].arrays)
    scales = (10**exponents)[:, None]
    scaled = [a * s for a, s in zip(arrays, (scales, scales[::-1]), strict=False)]
    scaled += [a * 10**modulus for a in arrays[2:]]
    value, _ = evaluate(name, arrays)
    moved, _ = evaluate(name, [a.astype(np.float32) for a in scaled])
    np.testing.assert_allclose(moved, value, rtol=1e-4, atol=1e-5)


@each_loss_once
@few_examples
@given(seed=st.integers(0, 999), sentences=st.permutations(range(SENTENCES)))
def test_joint_permutation_of_sentences_leaves_the_loss(name, seed, sentences):
    arrays = views(seed, CASES[name].arrays)
    rows = np.array([2 * s + view for s in sentences for view in (0, 1)])
    value, gradients = evaluate(name, arrays)
    moved, moved_gradients = evaluate(name, [a[rows] for a in arrays])
    np.testing.assert_allclose(moved, value, rtol=1e-5, atol=1e-6)
    for gradient, moved_gradient in zip(gradients, moved_gradients, strict=True):
        np.testing.assert_allclose(moved_gradient, gradient[rows], rtol=1e-3, atol=1e-4)


@each_loss_once
@few_examples
@given(
    seed=st.integers(0, 999),
    kept=st.sets(st.integers(0, SENTENCES - 1), min_size=2),
    filling=st.sampled_from([0.0, 1.0, -1e6, 1e15]),
)
def test_masked_batch_equals_the_batch_without_those_sentences(name, seed, kept, filling):
    arrays = views(seed, CASES[name].arrays)
    mask = np.repeat([s in kept for s in range(SENTENCES)], 2)
    expected = CASES[name].reference(*wide(a[mask] for a in arrays))
    for array in arrays:
        array[~mask] = array[~mask] * filling
    value, gradients = evaluate(name, arrays, mask)
    np.testing.assert_allclose(value, expected, rtol=5e-5, atol=1e-5)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[~mask], 0)
        assert np.isfinite(gradient).all()


@every_loss
@pytest.mark.parametrize("kept", [0, 1])
def test_batch_masked_to_one_sentence_or_none(name, kept):
    """The last batch may hold one sentence: nothing to contrast, so zero and no gradient."""
    arrays = views(4, CASES[name].arrays)
    mask = np.arange(2 * SENTENCES) < 2 * kept
    if name == "uniformity":  # its rows are sentences
        mask = np.arange(2 * SENTENCES) < kept
    value, gradients = evaluate(name, arrays, mask)
    if kept and not name.startswith(("info", "other", "unif")):
        expected = CASES[name].reference(*wide(a[:2] for a in arrays))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        return
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@each_loss_once
@few_examples
@given(data=st.data())
def test_finite_for_any_vectors(name, data):
    """Zeros, subnormal and huge entries, exact copies: value and gradients stay finite."""
    entry = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40, 1e-25, 1e-20, 1e-7, 1e18, -1e18]),
        st.floats(-(2.0**60), 2.0**60, width=32),
    )
    shape = (2 * SENTENCES, SIZE)
    drawn = [data.draw(hnp.arrays(np.float32, shape, elements=entry)) for _ in range(2)]
    arrays = [drawn[data.draw(st.integers(0, 1))] for _ in range(CASES[name].arrays)]
    value, gradients = evaluate(name, arrays)
    assert np.isfinite(value)
    for gradient in gradients:
        assert np.isfinite(gradient).all()


@every_loss
@pytest.mark.parametrize("rows", [slice(0, 1), slice(2, 4), slice(None)])
def test_zero_vectors_give_finite_values_and_gradients(name, rows):
    arrays = views(5, CASES[name].arrays)
    for array in arrays:
        array[rows] = 0
    value, gradients = evaluate(name, arrays)
    assert np.isfinite(value)
    for gradient in gradients:
        assert np.isfinite(gradient).all()


@every_loss
def test_bf16_input_is_computed_in_float32(name):
    arrays = views(6, CASES[name].arrays)
    narrow = [jnp.asarray(a, jnp.bfloat16) for a in arrays]
    value, gradients = evaluate(name, narrow)
    assert value.dtype == jnp.float32
    # What float32 gives for the rounded entries, and near the value of the unrounded.
    rounded, expected = evaluate(name, [a.astype(jnp.float32) for a in narrow])
    np.testing.assert_allclose(value, rounded, rtol=1e-6)
    np.testing.assert_allclose(value, evaluate(name, arrays)[0], rtol=0.05, atol=0.02)
    for gradient, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient.astype(jnp.float32), wanted, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("cosine", [-1.0, -0.3, -1e-6, -1e-30, 0.0, 1e-45, 1e-38, 1e-30, 1e-9])
def test_ictm_cosine_not_positive_is_a_constant(cosine):
    """1e-4, no gradient through the cosine, none of it lost through the modulus.

    A cosine below float32's resolution counts as zero: 1 / cosine would be an enormous gradient
    made of rounding.
    """
    x, y, p, q = views(7, 4)
    x[:] = [1, 0, 0]
    y[:] = [cosine, math.sqrt(1 - cosine**2), 0]
    value, (to_x, to_y, to_p, to_q) = evaluate("ictm", [x, y, p, q])
    moduli = [
        np.linalg.norm(a - b) / (np.linalg.norm(a) + np.linalg.norm(b))
        for a, b in zip(wide([p])[0][0::2], wide([q])[0][1::2], strict=True)
    ]
    np.testing.assert_allclose(value, -math.log(1e-4) * np.mean(moduli) / 2, rtol=1e-5)
    np.testing.assert_array_equal(to_x, 0)
    np.testing.assert_array_equal(to_y, 0)
    assert np.abs(to_p[0::2]).min() > 0 and np.abs(to_q[1::2]).min() > 0


@pytest.mark.parametrize("cosine", [1e-6, 1e-4, 0.01])
def test_ictm_small_positive_cosine_is_not_clamped(cosine):
    x, y, p, q = views(7, 4)
    x[:] = [1, 0, 0]
    y[:] = [cosine, math.sqrt(1 - cosine**2), 0]
    value, (to_x, _, _, _) = evaluate("ictm", [x, y, p, q])
    np.testing.assert_allclose(value, reference_ictm(*wide([x, y, p, q])), rtol=1e-5)
    assert np.abs(to_x[0::2]).max() > 0.01 / cosine  # the slope of -log cos


def test_ictm_of_parallel_vectors_is_zero_despite_rounding():
    """A rounded cosine may pass 1: the loss then is a rounding below zero, never NaN."""
    (x,) = views(8, 1)
    _, _, p, q = views(8, 4)
    x[1::2] = x[0::2] * 3
    value, gradients = evaluate("ictm", [x, x, p, q])
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradients[0], 0, atol=1e-5)


def test_ictm_of_equal_pooler_outputs_is_zero():
    x, y, p, _ = views(9, 4)
    p[1::2] = p[0::2]
    value, gradients = evaluate("ictm", [x, y, p, p])
    np.testing.assert_allclose(value, 0, atol=1e-5)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(gradient, 0, atol=1e-4)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((5, 3), (5, 3)), ((4, 3), (6, 3))])
@pytest.mark.parametrize("name", ["info_nce", "other_view", "ictm"])
def test_refuses_one_sentence_odd_rows_and_unlike_shapes(name, shapes):
    arrays = [jnp.ones(shape) for shape in shapes] * (CASES[name].arrays // 2)
    with pytest.raises(ValueError, match=r"2B, D.*negatives"):
        CASES[name].loss(*arrays)


def test_cosines_keep_float32_on_accelerators():
    """The default product of a TPU or a GPU rounds its inputs; the CPU here cannot show it."""
    jaxpr = jax.make_jaxpr(losses.cosines)(jnp.ones((2, 3)), jnp.ones((4, 3)))
    products = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    highest = jax.lax.Precision.HIGHEST
    assert [p.params["precision"] for p in products] == [(highest, highest)]


def test_values_and_gradients_equal_torch():
    torch = pytest.importorskip("torch", reason="torch is a development requirement")
    functional = torch.nn.functional

    def info_nce(x, y):
        scores = functional.cosine_similarity(x[:, None], y[None], dim=-1) / TEMPERATURE
        scores = scores - 1e12 * torch.eye(len(x), dtype=scores.dtype)
        return functional.cross_entropy(scores, torch.arange(len(x)) ^ 1)

    def other_view(x, y):
        scores = functional.cosine_similarity(x[0::2, None], y[None, 1::2], dim=-1)
        return functional.cross_entropy(scores / TEMPERATURE, torch.arange(len(scores)))

    def ictm(x, y, p, q):
        x, y, p, q = x[0::2], y[1::2], p[0::2], q[1::2]
        cosine = functional.cosine_similarity(x, y)
        cosine = torch.where(cosine <= 0, torch.tensor(1e-4, dtype=cosine.dtype), cosine)
        modulus = (p - q).norm(dim=1) / (p.norm(dim=1) + q.norm(dim=1)) / 2
        return (-torch.log(cosine) * modulus).mean()

    for name, transcription in (("info_nce", info_nce), ("other_view", other_view), ("ictm", ictm)):
        arrays = views(10, CASES[name].arrays)
        tensors = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays]
        expected = transcription(*tensors)
        expected.backward()
        value, gradients = evaluate(name, arrays)
        np.testing.assert_allclose(value, expected.item(), rtol=2e-5)
        for gradient, tensor in zip(gradients, tensors, strict=True):
            np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-3, atol=1e-4)
