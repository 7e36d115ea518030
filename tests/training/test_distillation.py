"""Distillation: the losses, the frozen teacher in the step, and whole runs."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from objective_cases import make_bank, make_batch
from reference_losses import reference_cosine, reference_info_nce
from runs import largest_difference, saved_params, tiny_config
from tiny_models import some_sentences, tiny_model
from transformers import BertTokenizer

from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.data.sources import open_source
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.models.teacher import Teacher
from jtcse_jax.runtime.sharding import make_mesh, place_batch
from jtcse_jax.store.exported import export
from jtcse_jax.training import losses, objectives
from jtcse_jax.training.run_record import check_inputs, record
from jtcse_jax.training.start import load_teacher
from jtcse_jax.training.train_step import init_state, make_train_step
from jtcse_jax.training.trainer import make_batches, tokenize_text, train

SGD = optax.sgd(0.1)


def reference_listwise(student, teacher, temperature, teacher_temperature):
    total, count = 0.0, len(student) // 2

    def softmax(x, temperature, i):
        weights = {
            j: math.exp(reference_cosine(x[2 * i], x[2 * j + 1]) / temperature)
            for j in range(count)
            if j != i
        }
        return {j: weight / sum(weights.values()) for j, weight in weights.items()}

    for i in range(count):
        wanted = softmax(teacher, teacher_temperature, i)
        given = softmax(student, temperature, i)
        total -= sum(wanted[j] * math.log(given[j]) for j in wanted)
    return total / count


def vectors(seed, rows=8, size=5):
    return np.random.default_rng(seed).normal(size=(rows, size))


def test_listwise_is_the_cross_entropy_of_the_two_rankings():
    student, teacher = vectors(0), vectors(1, size=7)  # the widths may differ
    temperatures = {"temperature": 0.3, "teacher_temperature": 0.2}
    found = losses.listwise(jnp.array(student), jnp.array(teacher), **temperatures)
    assert float(found) == pytest.approx(reference_listwise(student, teacher, 0.3, 0.2), rel=1e-4)
    mask = jnp.array([True] * 6 + [False] * 2)
    masked = losses.listwise(jnp.array(student), jnp.array(teacher), mask=mask, **temperatures)
    expected = reference_listwise(student[:6], teacher[:6], 0.3, 0.2)
    assert float(masked) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kept", [0, 1])
def test_listwise_of_one_sentence_or_none_is_zero(kept):
    """The last batch may hold one sentence, which has no others to be ranked."""

    def loss(student):
        mask = jnp.arange(8) < 2 * kept
        temperatures = {"temperature": 0.3, "teacher_temperature": 0.2}
        return losses.listwise(student, jnp.array(vectors(1)), mask=mask, **temperatures)

    value, gradient = jax.value_and_grad(loss)(jnp.array(vectors(0)))
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, 0)


def test_listwise_gradients_are_finite_and_the_teachers_are_zero():
    def loss(student, teacher):
        return losses.listwise(student, teacher, temperature=0.025, teacher_temperature=0.0125)

    student, teacher = jnp.array(vectors(0), jnp.float32), jnp.array(vectors(1), jnp.float32)
    grads = jax.grad(loss, argnums=(0, 1))(student, teacher)
    assert np.abs(grads[0]).max() > 0 and not np.abs(grads[1]).any()
    step = 1e-3
    for index in [(0, 0), (3, 2), (7, 4)]:
        change = np.zeros(student.shape)
        change[index] = step
        high, low = (
            reference_listwise(vectors(0) + sign * change, vectors(1), 0.025, 0.0125)
            for sign in (1, -1)
        )
        assert float(grads[0][index]) == pytest.approx(
            (high - low) / (2 * step), rel=0.02, abs=1e-3
        )
    for zeros in (jnp.zeros((8, 5)), student):
        assert np.isfinite(jax.grad(loss)(zeros, jnp.zeros((8, 5)))).all()
    with pytest.raises(ValueError, match="no negatives"):
        loss(student[:2], teacher[:2])


def make_teacher(weights=(0.3, 0.7)):
    banks = (make_bank(2), make_bank(1))
    return Teacher(banks, weights, tuple(bank.init(seed) for seed, bank in enumerate(banks, 5)))


def test_the_teacher_is_the_weighted_sum_of_raw_vectors():
    teacher, batch = make_teacher(), make_batch()
    found = jax.jit(teacher.embed)(teacher.params, (batch, batch))
    alone_bank, expected = make_bank(1), 0.0
    embed = jax.jit(lambda params: alone_bank.apply(params, batch).hidden[0])
    for weight, bank, params in zip(teacher.weights, teacher.banks, teacher.params, strict=True):
        for tower in range(bank.num_towers):
            alone = jax.tree.map(lambda leaf: leaf[tower : tower + 1], params)  # noqa: B023
            expected += weight * np.asarray(embed(alone))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["contrastive", "listwise"])
def test_the_step_learns_from_the_teacher_without_changing_it(kind):
    config = ObjectiveConfig(name="distill", teacher="somewhere", distillation=kind)
    student = make_bank(1, dropout=0.1, attention_dropout=0.1)
    teacher, batch = make_teacher(), make_batch()
    batch = batch._replace(teacher=(batch, batch))
    before = jax.tree.map(np.array, teacher.params)
    state = init_state({"towers": jax.tree.map(jnp.array, student.init(0))}, SGD)
    params = jax.tree.map(np.array, state.params)
    key = jax.random.key(0)
    step = make_train_step(student, config, SGD, teacher=teacher)
    state, metrics = step(state, batch, key)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(teacher.params), strict=True):
        np.testing.assert_array_equal(one, other)

    dropout_key = jax.random.fold_in(key, 0)
    apply = jax.jit(lambda params, key: student.apply(params, batch, key=key).hidden[0])
    s = np.asarray(apply(params["towers"], dropout_key))
    t = np.asarray(jax.jit(teacher.embed)(before, (batch, batch)))
    if kind == "listwise":
        expected = {"listwise": reference_listwise(s, t, 0.025, 0.0125)}
    else:
        expected = {"nce": reference_info_nce(s, s), "teacher": reference_info_nce(s, t)}
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-3), name
    assert float(metrics["loss"]) == pytest.approx(sum(expected.values()), rel=1e-3)
    assert largest_difference(params["towers"], state.params["towers"]) > 0


def test_only_distill_takes_a_teacher(tmp_path):
    with pytest.raises(UserError, match="objective.teacher = None"):
        ObjectiveConfig(name="distill")
    with pytest.raises(UserError, match="objective.teacher = runs/x"):
        ObjectiveConfig(name="simcse", teacher="runs/x")
    assert objectives.negatives_per_anchor(8, 2, ObjectiveConfig(name="distill", teacher="x")) == 14
    listwise = ObjectiveConfig(name="distill", teacher="x", distillation="listwise")
    assert objectives.negatives_per_anchor(8, 2, listwise) == 7


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The folder of two towers."""
    folder = tmp_path_factory.mktemp("twin") / "model"
    export(tiny_model(2), folder)
    return folder


def student_config(twin, folder, teacher, steps=20, **objective):
    config = tiny_config(
        folder,
        objective=ObjectiveConfig(name="distill", teacher=str(teacher), **objective),
        max_steps=steps,
    )
    text = folder / "words.txt"
    text.write_text("\n".join(dict.fromkeys(filter(None, some_sentences(160, longest=10)))))
    model = dataclasses.replace(
        config.model, towers=(f"{twin}#1",), dropout=0.0, attention_dropout=0.0
    )
    data = dataclasses.replace(config.data, source=str(text), dev=None)
    return dataclasses.replace(config, model=model, data=data)


def test_a_student_starts_from_a_tower_and_comes_closer_to_the_twin(twin, tmp_path):
    temperatures = {"student_temperature": 0.1, "teacher_temperature": 0.05}
    config = student_config(twin, tmp_path, twin, distillation="listwise", **temperatures)
    train(config, devices=jax.devices()[:1])
    sentences = list(open_source(config.data.source).read())
    wanted = SentenceEncoder.load(twin).encode(sentences)

    def distance(encoder):
        vectors = encoder.encode(sentences)
        return float(
            losses.listwise(
                np.repeat(vectors, 2, axis=0),
                np.repeat(wanted, 2, axis=0),
                temperature=0.1,
                teacher_temperature=0.05,
            )
        )

    twin_model = tiny_model(2)
    start = dataclasses.replace(
        twin_model,
        bank=dataclasses.replace(twin_model.bank, num_towers=1),
        params=jax.tree.map(lambda leaf: leaf[1:], twin_model.params),
    )
    trained = distance(SentenceEncoder.load(config.workdir))
    assert trained < distance(SentenceEncoder.of(start)) - 0.005
    # ten steps of 1e-3: it left from there
    assert largest_difference(start.params, saved_params(config.workdir)) < 0.03


def test_an_ensemble_with_another_vocabulary_teaches(twin, tmp_path):
    """What the teacher says in the step is what the ensemble encodes."""
    other = tiny_model(1, pooling="mean")
    vocabulary = other.tokenizer.get_vocab()
    words = {  # the special tokens keep their numbers
        word: number if number < 5 else len(vocabulary) + 4 - number
        for word, number in vocabulary.items()
    }
    other = dataclasses.replace(other, tokenizer=BertTokenizer(vocab=words, do_lower_case=True))
    export(other, tmp_path / "third")
    shutil.copytree(twin, tmp_path / "twin")
    description = tmp_path / "uc.json"
    members = [{"model": "twin", "weight": 0.3}, {"model": "third", "weight": 0.7}]
    description.write_text(json.dumps({"members": members}))
    config = student_config(twin, tmp_path, description)
    (tmp_path / "run").mkdir()
    mesh = make_mesh(devices=jax.devices()[:2])
    student = make_bank(1)
    config = dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, distillation="listwise")
    )
    teacher, tokenizers, _ = load_teacher(config, student, mesh)
    source = open_source(config.data.source)
    caches = tokenize_text(config, source, [*tokenizers[:1], *tokenizers])
    batches = make_batches(config, caches, None, mesh, 64)
    batch = batches[0]
    embed = jax.jit(teacher.embed)
    found = embed(teacher.params, place_batch(mesh, batch).teacher)
    text = list(open_source(config.data.source).read())
    encoded = SentenceEncoder.load(description).encode(text)
    for row in range(0, 16, 2):
        np.testing.assert_array_equal(found[row], found[row + 1])
        nearest = np.abs(encoded - found[row]).max(axis=1)
        assert nearest.min() < 1e-4
    assert len({int(np.abs(encoded - row).max(axis=1).argmin()) for row in found}) == 8


def test_teachers_that_cannot_be_met_are_refused(twin, tmp_path):
    config = student_config(twin, tmp_path, twin)
    narrow = dataclasses.replace(config.model.scratch, hidden_size=8)

    def with_towers(*towers):
        model = dataclasses.replace(config.model, towers=towers, scratch=narrow)
        return dataclasses.replace(config, model=model)

    with pytest.raises(UserError, match="16 wide, but the student 8: .*listwise"):
        train(with_towers("scratch"))
    with pytest.raises(UserError, match="has 2 towers: name one of them"):
        train(with_towers(str(twin)))
    with pytest.raises(UserError, match=r"has 2 tower\(s\), numbered from 0"):
        train(with_towers(f"{twin}#2"))


def test_a_tower_of_a_twin_is_a_model_like_others(twin):
    """And so it encodes, teaches and exports alone."""
    both = SentenceEncoder.load(twin).encode(["the cat sees"])
    alone = [SentenceEncoder.load(f"{twin}#{tower}").encode(["the cat sees"]) for tower in (0, 1)]
    np.testing.assert_allclose(alone[0] + alone[1], both, rtol=1e-5, atol=1e-5)


def test_a_run_ends_with_the_teacher_it_began_with(twin, tmp_path):
    config = student_config(twin, tmp_path, twin)
    (tmp_path / "run").mkdir()
    student, mesh = make_bank(1), make_mesh(devices=jax.devices()[:1])
    *_, fingerprint = load_teacher(config, student, mesh)
    record(tmp_path / "run", config, {"teacher": fingerprint})
    check_inputs(config, {"teacher": fingerprint})
    other = dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, teacher=f"{twin}#0")
    )
    with pytest.raises(
        UserError, match="objective.teacher is not the one that the run in .* began with"
    ):
        check_inputs(other, {"teacher": load_teacher(other, student, mesh)[2]})
