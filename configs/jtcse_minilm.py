"""JTCSE on two MiniLM towers (6 layers, 384 wide) with their own pooling, crossed in 3 layers.

    python -m jtcse_jax.train --config configs/jtcse_minilm.py --data.source TEXT --data.dev STSB

The towers come from two runs of `configs/simcse_minilm.py`. This is a real model on real text, and
two processor cores train it in seconds per step.
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
    workdir="runs/jtcse_minilm",
    model=ModelConfig(
        towers=("runs/simcse_minilm_a", "runs/simcse_minilm_b"),
        cross=Cross(mode="side", num_layers=3),
    ),
    data=DataConfig(max_len=64, batch_size=64),
    objective=ObjectiveConfig(name="jtcse"),
    optimizer=OptimizerConfig(learning_rate=1e-5),
    eval_every=50,
    save_every=50,
)
