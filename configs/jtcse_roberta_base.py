"""JTCSE-RoBERTa (arXiv 2505.02366): two SimCSE towers, crossed in 6 of 12 layers.

    python -m jtcse_jax.train --config configs/jtcse_roberta_base.py --data.source TEXT \\
        --data.dev STSB

The towers come from two runs of `configs/simcse_roberta_base.py`. Optimizer, batch, lengths and
dropout are those of the authors' script; how the towers cross is our reading of the paper
(`docs/reproduction.md`).
"""

from jtcse_jax.config import (
    Config,
    Cross,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
)

config = Config(
    workdir="runs/jtcse_roberta_base",
    model=ModelConfig(
        towers=("runs/simcse_roberta_base_a", "runs/simcse_roberta_base_b"),
        compute_dtype="bfloat16",
        cross=Cross(mode="side", num_layers=6),
    ),
    data=DataConfig(max_len=64, batch_size=256),
    objective=ObjectiveConfig(name="jtcse"),
    optimizer=OptimizerConfig(learning_rate=1e-6),
)
