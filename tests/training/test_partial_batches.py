"""The last batch of an epoch, in which sentences are missing."""

import numpy as np
import pytest
from objective_cases import (
    KEYS,
    GivenOutputs,
    assert_terms,
    gradients,
    make_bank,
    make_batch,
    make_outputs,
    reference_terms,
    run,
)
from reference_losses import reference_alignment, reference_other_view, reference_uniformity

from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.models.towers import TowerOutputs
from jtcse_jax.training import objectives

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("name", ["simcse", "tncse", "jtcse"])
def test_masked_batch_equals_the_smaller_batch(name):
    """In every term; the absent sentence, wherever it stands, gets no gradient."""
    config = ObjectiveConfig(name)
    exists = np.array([True, False, True])
    outputs, mask = make_outputs(2), np.repeat(exists, 2)
    small = TowerOutputs(*(a[:, mask] for a in outputs))
    batch = make_batch(mask=exists)
    objective = objectives.OBJECTIVES[name]
    _, terms = objective(GivenOutputs(), {"towers": outputs}, batch, KEYS[0], config)
    if name == "simcse":
        expected = {"nce": sum(reference_other_view(x, x) for x in small.hidden)}
    else:
        sides = [reference_terms(small, config, coin, name == "jtcse") for coin in (0, 1)]
        expected = min(sides, key=lambda side: abs(side["icnce"] - terms["icnce"]))
    embedding = small.hidden.sum(axis=0)
    expected["alignment"] = reference_alignment(embedding)
    expected["uniformity"] = reference_uniformity(embedding[0::2])
    assert_terms(terms, expected)
    found = gradients(GivenOutputs(), config, batch, {"towers": outputs})
    for gradient in found.values():
        np.testing.assert_array_equal(gradient[:, ~mask], 0)
    assert np.abs(found["towers/hidden"][:, mask]).max() > 1e-3


@pytest.mark.parametrize("name", ["simcse", "tncse", "jtcse"])
@pytest.mark.parametrize("kept", [0, 1])
def test_batch_of_one_sentence_or_none_is_finite(name, kept):
    bank, config = make_bank(), ObjectiveConfig(name)
    batch = make_batch(mask=[True] * kept + [False] * (3 - kept))
    loss, terms, _ = run(bank, config, batch)
    assert terms["nce"] == 0 and terms["uniformity"] == 0
    assert np.isfinite([loss, *terms.values()]).all()
    for path, gradient in gradients(bank, config, batch).items():
        assert np.isfinite(gradient).all(), path
