"""Checks a machine: training, saving, resuming and evaluating work. No download is needed.

    python -m jtcse_jax.train --config configs/smoke.py

Trains two small towers from random weights on the English of Python's own documentation. The result
is not useful as an encoder: in two minutes, small towers learn to tell sentences apart, but not
what they mean (`configs/quickstart_minilm.py` trains a useful one).
"""

from jtcse_jax.config import (
    Architecture,
    Config,
    Cross,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
)

config = Config(
    workdir="runs/smoke",
    model=ModelConfig(
        towers=("scratch", "scratch"),
        scratch=Architecture(
            vocab_size=4096,
            hidden_size=128,
            num_layers=2,
            num_heads=4,
            intermediate_size=512,
            max_positions=64,
        ),
        cross=Cross(num_layers=1),
    ),
    data=DataConfig(source="stdlib", max_len=32, batch_size=32, dev="builtin"),
    objective=ObjectiveConfig(name="jtcse"),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, schedule="linear", warmup_steps=10, max_grad_norm=1.0
    ),
    max_steps=120,
    eval_every=40,
    save_every=40,
)
