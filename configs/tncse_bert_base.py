"""TNCSE-BERT (arXiv 2503.12739): two SimCSE towers, no cross-attention.

    python -m jtcse_jax.train --config configs/tncse_bert_base.py --data.source TEXT --data.dev STSB

Learning rate, batch, lengths and dropout are those of the authors' script (`docs/reproduction.md`).
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
    workdir="runs/tncse_bert_base",
    model=ModelConfig(
        towers=("runs/simcse_bert_base_a", "runs/simcse_bert_base_b"),
        dropout=0.00025,
        attention_dropout=0.00025,
        compute_dtype="bfloat16",
        cross=Cross(mode="off"),
    ),
    data=DataConfig(max_len=64, batch_size=64),
    objective=ObjectiveConfig(name="tncse"),
    optimizer=OptimizerConfig(learning_rate=1e-6),
)
