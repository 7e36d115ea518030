"""TNCSE-RoBERTa (arXiv 2503.12739): two SimCSE towers, no cross-attention.

    python -m jtcse_jax.train --config configs/tncse_roberta_base.py --data.source TEXT \\
        --data.dev STSB

Dropout is that of the authors' script; batch and learning rate are those of their README (the
paper's supplement has batches of 64). Unlike the script, this trains the last hidden state as the
sentence vector (`docs/reproduction.md`).
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
    workdir="runs/tncse_roberta_base",
    model=ModelConfig(
        towers=("runs/simcse_roberta_base_a", "runs/simcse_roberta_base_b"),
        dropout=0.0175,
        attention_dropout=0.0175,
        compute_dtype="bfloat16",
        cross=Cross(mode="off"),
    ),
    data=DataConfig(max_len=64, batch_size=256),
    objective=ObjectiveConfig(name="tncse"),
    optimizer=OptimizerConfig(learning_rate=1e-6),
)
