"""The whole recipe from random weights: a language model, two SimCSE towers, JTCSE, distillation.

    python -m jtcse_jax.pipeline --config configs/pipeline_scratch.py --source TEXT

Use it for a language or domain without a BERT. The encoder is that of `configs/mlm_small.py`;
`docs/results.md` has the result of its first stage after 2,000 steps.
"""

import dataclasses
from pathlib import Path

from jtcse_jax.config import (
    Config,
    Cross,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
)
from jtcse_jax.config_file import load_config_file
from jtcse_jax.pipeline_config import Pipeline

DATA = DataConfig(max_len=32, batch_size=32)
LENGTH = {"max_steps": 500, "eval_every": 100, "save_every": 100}


def adamw(learning_rate: float, **fields) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=learning_rate, schedule="linear", **fields)


tower_a = Config(
    model=ModelConfig(towers=("language",)),
    data=DATA,
    objective=ObjectiveConfig(name="simcse", simcse_negatives="all"),
    optimizer=adamw(1e-4, max_grad_norm=1.0),
    **LENGTH,
)
tower_b = dataclasses.replace(
    tower_a,
    data=dataclasses.replace(DATA, pairs="repeat"),
    optimizer=adamw(7e-5, max_grad_norm=1.0),
    seed=43,
)
jtcse = Config(
    model=ModelConfig(towers=("tower_a", "tower_b"), cross=Cross(num_layers=2)),
    data=DATA,
    objective=ObjectiveConfig(name="jtcse"),
    optimizer=adamw(3e-5),
    **LENGTH,
)
distilled = Config(
    model=ModelConfig(towers=("jtcse#0",)),
    data=DATA,
    objective=ObjectiveConfig(name="distill", teacher="jtcse"),
    optimizer=adamw(3e-5),
    **LENGTH,
)

config = Pipeline(
    workdir="runs/pipeline_scratch",
    stages={
        "language": load_config_file(Path(__file__).with_name("mlm_small.py")),
        "tower_a": tower_a,
        "tower_b": tower_b,
        "jtcse": jtcse,
        "distilled": distilled,
    },
)
