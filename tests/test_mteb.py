"""MTEB opens an exported tower and gives it the score that we give it."""

import numpy as np
import pytest
from test_encoder import some_sentences, tiny_model

from jtcse_jax import exported
from jtcse_jax.encoder import SentenceEncoder
from jtcse_jax.evaluation.sts import Pairs, cosine_scores, spearman


@pytest.mark.slow
def test_mteb_scores_an_exported_tower_as_we_do(tmp_path):
    mteb = pytest.importorskip("mteb", reason="mteb is not installed (requirements-dev.txt)")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    exported.export(tiny_model(1), tmp_path / "out")
    encoder = SentenceEncoder.load(tmp_path / "out")
    sentences = some_sentences(80)
    pairs = Pairs(sentences[:40], sentences[40:], np.zeros(40))
    # Scores from 0 to 5 that follow the model's own, loosely.
    cosines = cosine_scores(encoder.encode, pairs)
    loose = cosines + cosines.std() * np.random.default_rng(0).standard_normal(40)
    gold = 5 * (loose - loose.min()) / np.ptp(loose)

    class Local(type(mteb.get_task("STSBenchmark"))):
        """STS-B's task on pairs that need no download."""

        def load_data(self, **kwargs):
            columns = {"sentence1": pairs.first, "sentence2": pairs.second, "score": gold}
            self.dataset = {"test": datasets.Dataset.from_dict(columns)}
            self.data_loaded = True

    model = mteb.SentenceTransformerEncoderWrapper(str(tmp_path / "out"), device="cpu")
    result = mteb.evaluate(model, Local(), cache=None)
    theirs = result.task_results[0].scores["test"][0]["cosine_spearman"]
    assert 0.3 < theirs < 0.95
    np.testing.assert_allclose(theirs, spearman(cosines, gold), atol=1e-4)
