"""Hard negatives, the third and further columns of a text, in every contrastive objective."""

import csv
import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from objective_cases import KEYS, GivenOutputs, make_batch, reference_pairs
from reference_losses import reference_cosine, reference_ictm
from runs import tiny_config
from torch.nn import functional

from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.models.towers import TowerOutputs
from jtcse_jax.store.workdir import METRICS
from jtcse_jax.training import objectives
from jtcse_jax.training.metrics import read_jsonl
from jtcse_jax.training.trainer import train

SENTENCES, SIZE = 4, 5
PRESENT = np.array([True, False, True, True])
BATCH = make_batch()


def batch_of(present=None):
    """The part of a batch that a loss reads."""
    mask = np.ones(SENTENCES, bool) if present is None else present
    return BATCH._replace(mask=mask)


def outputs_of(views, towers=2):
    """Vectors [K, VB, D] with cosines of both signs."""
    random = np.random.default_rng(views)
    shared = random.normal(size=(3, 1, views * SENTENCES, SIZE))
    own = random.normal(size=(3, towers, views * SENTENCES, SIZE))
    return TowerOutputs(*(shared + 0.7 * own).astype(np.float32))


def taken_apart(vectors, present):
    """float64 [B', V, D], the views of the sentences that are there."""
    views = vectors.astype(np.float64).reshape(SENTENCES, -1, SIZE)
    return views[PRESENT] if present is not None else views


def slow_nce(x, y, temperature, other_view=False):
    """The loop: anchors are both views (or the first), and no candidate is the anchor itself."""
    losses = []
    for i in range(len(x)):
        for view in (0,) if other_view else (0, 1):
            scores = {
                (j, other): reference_cosine(x[i, view], y[j, other]) / temperature
                for j in range(len(y))
                for other in range(y.shape[1])
                if (j, other) != (i, view) and not (other_view and other == 0)
            }
            total = sum(math.exp(score) for score in scores.values())
            losses.append(math.log(total) - scores[i, 1 - view])
    return sum(losses) / len(losses)


def loss_of(name, outputs, present=None, **fields):
    config = ObjectiveConfig(name, temperature=0.5, **fields)
    batch = batch_of(present)
    return objectives.OBJECTIVES[name](GivenOutputs(), {"towers": outputs}, batch, KEYS[0], config)


def test_simcse_is_the_published_loss_and_gradient_of_supervised_simcse():
    """As in its training code: one matrix of positives beside one of hard negatives."""
    outputs = outputs_of(3)
    found, gradient = jax.value_and_grad(
        lambda hidden: loss_of("simcse", outputs._replace(hidden=hidden))[0]
    )(jnp.array(outputs.hidden))
    vectors = torch.tensor(outputs.hidden, requires_grad=True)
    expected = 0
    for tower in vectors:
        first, second, third = tower.reshape(SENTENCES, 3, SIZE).unbind(1)
        scores = [
            functional.cosine_similarity(first[:, None], other[None], dim=-1) / 0.5
            for other in (second, third)
        ]
        expected += functional.cross_entropy(torch.cat(scores, 1), torch.arange(SENTENCES))
    expected.backward()
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, vectors.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("present", [None, PRESENT], ids=["whole", "partial"])
@pytest.mark.parametrize("views", [3, 4])
@pytest.mark.parametrize("negatives", ["other_view", "all"])
def test_simcse_with_hard_negatives_is_the_slow_loop(negatives, views, present):
    outputs = outputs_of(views)
    loss, terms = loss_of("simcse", outputs, present, simcse_negatives=negatives)
    expected = 0
    for tower in outputs.hidden:
        x = taken_apart(tower, present)
        expected += slow_nce(x, x, 0.5, negatives == "other_view")
    np.testing.assert_allclose([loss, terms["nce"]], expected, rtol=1e-5)


@pytest.mark.parametrize("present", [None, PRESENT], ids=["whole", "partial"])
@pytest.mark.parametrize("towers", [2, 3])
@pytest.mark.parametrize("name", ["tncse", "jtcse"])
def test_two_and_more_towers_with_hard_negatives_are_the_slow_loop(name, towers, present):
    """Each tower's hard negatives are candidates of its own anchors and of its neighbour's."""
    outputs = outputs_of(3, towers)
    _, terms = loss_of(name, outputs, present)
    h, p, c = (
        [taken_apart(x, present) for x in each]
        for each in (outputs.hidden, outputs.pooled, outputs.crossed)
    )
    crossed = [c] if name == "jtcse" else []
    sides = [
        sum(
            slow_nce(*((x[b], x[a]) if turned else (x[a], x[b])), 0.5)
            for x in (h, *crossed)
            for a, b in reference_pairs(towers)
        )
        for turned in (False, True)
    ]
    assert abs(sides[0] - sides[1]) > 1e-3
    nearest = min(sides, key=lambda side: abs(side - terms["icnce"]))
    assert name == "jtcse" or nearest == sides[0]
    rows = [[x[:, :2].reshape(-1, SIZE) for x in each] for each in (h, p)]
    expected = {
        "nce": sum(slow_nce(x, x, 0.5) for x in h),
        "icnce": nearest,
        "ictm": sum(
            reference_ictm(*(each[k] for each in rows for k in pair))
            for a, b in reference_pairs(towers)
            for pair in ((a, b), (b, a))
        ),
    }
    for term, value in expected.items():
        np.testing.assert_allclose(terms[term], value, rtol=2e-5, err_msg=term)


@pytest.mark.parametrize("present", [None, PRESENT], ids=["whole", "partial"])
@pytest.mark.parametrize("distillation", ["contrastive", "listwise"])
def test_distillation_with_hard_negatives_is_the_slow_loop(distillation, present):
    outputs = outputs_of(3, towers=1)
    target = outputs_of(4).hidden[0, : 3 * SENTENCES]
    config = ObjectiveConfig(
        "distill", 0.5, teacher="x", distillation=distillation, student_temperature=0.3
    )
    batch = batch_of(present)._replace(target=target)
    loss, _ = objectives.OBJECTIVES["distill"](
        GivenOutputs(), {"towers": outputs}, batch, KEYS[0], config
    )
    student, teacher = taken_apart(outputs.hidden[0], present), taken_apart(target, present)
    if distillation == "contrastive":
        expected = slow_nce(student, student, 0.5) + slow_nce(student, teacher, 0.5)
    else:
        expected = slow_listwise(student, teacher, 0.3, config.teacher_temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def slow_listwise(student, teacher, temperature, teacher_temperature):
    """Each sentence ranks the second views of the others, and all hard negatives."""
    total = 0
    for i in range(len(student)):
        ranked = [(j, view) for j in range(len(student)) for view in (1, 2) if (j, view) != (i, 1)]
        shares = []
        for x, divisor in ((teacher, teacher_temperature), (student, temperature)):
            scores = np.array([reference_cosine(x[i, 0], x[place]) / divisor for place in ranked])
            weights = np.exp(scores - scores.max())
            shares.append(weights / weights.sum())
        total -= float(np.sum(shares[0] * np.log(shares[1])))
    return total / len(student)


def write_triples(folder):
    """A table of 32 anchors with positives and hard negatives."""
    with open(folder / "triples.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "anchor", "positive", "negative"))
        for i in range(32):
            writer.writerow(
                (i, f"The cat {i} sees me.", f"I see cat {i}.", f"No cat saw {i} dogs.")
            )
    return str(folder / "triples.csv")


@pytest.mark.parametrize("name", ["simcse", "jtcse"])
def test_a_table_of_triples_trains_and_micro_batches_change_nothing(tmp_path, capsys, name):
    """Without dropout; the count of negatives is printed.

    Means, because [CLS] of random towers is the same in all sentences, and its gradient rounding.
    """
    base = tiny_config(tmp_path, max_steps=3, log_every=1, objective=ObjectiveConfig(name))
    columns = ("anchor", "positive", "negative")
    data = dataclasses.replace(base.data, source=write_triples(tmp_path), columns=columns)
    model = dataclasses.replace(base.model, dropout=0.0, attention_dropout=0.0, pooling="mean")
    ended = []
    for micro in (None, 2):
        config = dataclasses.replace(
            base,
            workdir=str(tmp_path / f"run{micro}"),
            model=model,
            data=dataclasses.replace(data, micro_batch=micro),
        )
        train(config)
        lines = read_jsonl(Path(config.workdir) / METRICS)
        ended.append([(x["loss"], x["grad_norm"]) for x in lines if "loss" in x])
    assert len(ended[0]) == 3
    np.testing.assert_allclose(ended[1], ended[0], rtol=2e-3)
    expected = {"simcse": 7 + 8, "jtcse": 14 + 8}[name]
    assert re.search(rf"\b{expected} negatives an anchor", capsys.readouterr().out)


def test_negatives_are_counted_by_the_views_of_a_sentence():
    """One view (mlm) has none, two have those of the batch, and each further one adds a batch."""
    config = ObjectiveConfig("simcse")
    assert objectives.negatives_per_anchor(8, 2, config) == 7
    assert objectives.negatives_per_anchor(8, 4, config) == 7 + 16
    assert objectives.negatives_per_anchor(8, 1, ObjectiveConfig("mlm")) == 0


def test_side_exchange_reaches_the_hard_negatives():
    """The crossed vectors of hard negatives are candidates too."""
    outputs = outputs_of(3)
    moved = outputs.crossed.copy()
    moved.reshape(2, SENTENCES, 3, SIZE)[:, :, 2] *= -1
    before, after = (
        loss_of("jtcse", outputs._replace(crossed=crossed))[1]["icnce"]
        for crossed in (outputs.crossed, moved)
    )
    assert abs(before - after) > 1e-3
