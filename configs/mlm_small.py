"""Masked language modelling from random weights: a small encoder for text that no BERT covers.

    python -m jtcse_jax.train --config configs/mlm_small.py --data.source TEXT

Four layers, 256 wide, with a WordPiece vocabulary trained on the text. To continue from a BERT of
another domain, give it: `--model.towers bert-base-uncased --optimizer.learning-rate 5e-5`. There is
no dev set, because the vectors of a language model are not yet sentence embeddings.
"""

from jtcse_jax.config import (
    Architecture,
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
)

config = Config(
    workdir="runs/mlm_small",
    model=ModelConfig(
        towers=("scratch",),
        scratch=Architecture(
            vocab_size=8192,
            hidden_size=256,
            num_layers=4,
            num_heads=4,
            intermediate_size=1024,
            max_positions=128,
        ),
    ),
    data=DataConfig(max_len=64, batch_size=64, pairs="none"),
    objective=ObjectiveConfig(name="mlm"),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, schedule="linear", warmup_steps=200, max_grad_norm=1.0
    ),
    max_steps=2000,
    save_every=500,
    log_every=50,
)
