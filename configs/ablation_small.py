"""One factor at a time from JTCSE, all variants from the same two towers, on a small encoder.

    python -m jtcse_jax.train --config configs/mlm_small.py --data.source TEXT
    python -m jtcse_jax.pipeline --config configs/ablation_small.py --source TEXT --dev STSB \\
        --sts STS --seed 0 --workdir runs/ablation_small/0

Once for each seed. Then, for each variant beside the default:

    python -m jtcse_jax.evaluate --sts STS --model \\
        runs/ablation_small/0/jtcse,runs/ablation_small/1/jtcse,runs/ablation_small/2/jtcse \\
        --compare runs/ablation_small/0/tncse,runs/ablation_small/1/tncse,... ...
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

DATA = DataConfig(max_len=32, batch_size=16)
LENGTH = {"max_steps": 500, "eval_every": 100, "save_every": 100}


def adamw(learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=learning_rate, schedule="linear", max_grad_norm=1.0)


def twin(objective: str, learning_rate: float = 3e-5, dropout: float = 0.1, **cross) -> Config:
    return Config(
        model=ModelConfig(
            towers=("tower_a", "tower_b"),
            dropout=dropout,
            attention_dropout=dropout,
            cross=Cross(**{"num_layers": 2} | cross),
        ),
        data=DATA,
        objective=ObjectiveConfig(name=objective),
        optimizer=adamw(learning_rate),
        **LENGTH,
    )


tower_a = Config(
    model=ModelConfig(towers=("runs/mlm_small",)),
    data=DATA,
    objective=ObjectiveConfig(name="simcse", simcse_negatives="all"),
    optimizer=adamw(1e-4),
    **LENGTH,
)
tower_b = dataclasses.replace(
    tower_a,
    data=dataclasses.replace(DATA, pairs="repeat"),
    optimizer=adamw(7e-5),
    seed=43,
)
simcse = twin("simcse")
distilled = Config(
    model=ModelConfig(towers=("jtcse#0",)),
    data=DATA,
    objective=ObjectiveConfig(name="distill", teacher="jtcse"),
    optimizer=adamw(3e-5),
    **LENGTH,
)

config = Pipeline(
    workdir="runs/ablation_small/0",
    stages={
        "tower_a": tower_a,
        "tower_b": tower_b,
        "simcse": dataclasses.replace(
            simcse, objective=dataclasses.replace(simcse.objective, simcse_negatives="all")
        ),
        "jtcse": twin("jtcse"),
        "tncse": twin("tncse"),
        "distilled": distilled,
        "cross_0": twin("jtcse", num_layers=0),
        "cross_1": twin("jtcse", num_layers=1),
        "cross_main": twin("jtcse", mode="main"),
        "low_dropout": twin("jtcse", dropout=0.00025),
    },
)
