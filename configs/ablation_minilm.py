"""One change at a time to `jtcse_minilm.py`; every variant starts from the published MiniLM.

    python -m jtcse_jax.pipeline --config configs/ablation_minilm.py --source TEXT --dev STSB \\
        --seed 0 --workdir runs/ablation_minilm/0

Run it once per seed. Then compare the variants with the default, seeds joined by commas:

    RUNS=runs/ablation_minilm
    python -m jtcse_jax.evaluate --sts STS \\
        --model jtcse=$RUNS/0/jtcse,$RUNS/1/jtcse,$RUNS/2/jtcse \\
        --compare tncse=$RUNS/0/tncse,$RUNS/1/tncse,$RUNS/2/tncse

NAME#0 in the place of NAME is the first tower of a variant alone.
"""

import dataclasses
from pathlib import Path

from jtcse_jax.config import Config, Cross, ModelConfig, ObjectiveConfig
from jtcse_jax.config_file import load_config_file
from jtcse_jax.pipeline_config import Pipeline

jtcse = load_config_file(Path(__file__).with_name("jtcse_minilm.py"))
MINILM = jtcse.model.towers[0]


def model(**fields) -> Config:
    return dataclasses.replace(jtcse, model=dataclasses.replace(jtcse.model, **fields))


def data(**fields) -> Config:
    return dataclasses.replace(jtcse, data=dataclasses.replace(jtcse.data, **fields))


def objective(name: str, **fields) -> Config:
    return dataclasses.replace(jtcse, objective=ObjectiveConfig(name=name, **fields))


config = Pipeline(
    workdir="runs/ablation_minilm/0",
    stages={
        "jtcse": jtcse,
        "simcse": load_config_file(Path(__file__).with_name("simcse_minilm.py")),
        "tncse": objective("tncse"),
        "random": dataclasses.replace(
            jtcse, data=dataclasses.replace(jtcse.data, batches="random")
        ),
        "cross_0": model(cross=Cross(num_layers=0)),
        "cross_6": model(cross=Cross(num_layers=6)),
        "cross_main": model(cross=Cross(num_layers=3, mode="main")),
        "ring": model(towers=(MINILM,) * 3),
        "temperature_0_1": objective("jtcse", temperature=0.1),
        "temperature_0_2": objective("jtcse", temperature=0.2),
        "distilled": dataclasses.replace(
            jtcse,
            model=ModelConfig(towers=("jtcse#0",)),
            objective=ObjectiveConfig(name="distill", teacher="jtcse"),
        ),
    },
    export="jtcse#0",
)
