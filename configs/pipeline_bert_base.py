"""The JTCSE recipe on BERT-base (arXiv 2505.02366): two SimCSE towers, JTCSE, distillation.

    python -m jtcse_jax.pipeline --config configs/pipeline_bert_base.py --source TEXT \\
        --dev STSB --sts STS

With this command both towers train on TEXT, the second with repeated words. The authors train the
towers on round-trip translations (`python -m jtcse_jax.augment back-translate`), French for one and
Russian for the other, with learning rates of 1.5e-5 and 2e-5 and one seed:

    python -m jtcse_jax.pipeline --config configs/pipeline_bert_base.py --source TEXT \\
        --dev STSB --sts STS --stages.tower-a.data.source rtt_fr.tsv \\
        --stages.tower-a.optimizer.learning-rate 1.5e-5 \\
        --stages.tower-b.data.source rtt_ru.tsv --stages.tower-b.data.pairs same \\
        --stages.tower-b.optimizer.learning-rate 2e-5 --stages.tower-b.seed 42

The other differences from the authors' recipe are in `docs/reproduction.md`.
"""

import dataclasses
from pathlib import Path

from jtcse_jax.config import Config
from jtcse_jax.config_file import load_config_file
from jtcse_jax.pipeline_config import Pipeline


def stage(name: str) -> Config:
    return load_config_file(Path(__file__).with_name(f"{name}.py"))


def starting_from(config: Config, *towers: str) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, towers=towers))


tower_a = stage("simcse_bert_base")
tower_b = dataclasses.replace(
    tower_a,
    data=dataclasses.replace(tower_a.data, pairs="repeat"),
    optimizer=dataclasses.replace(tower_a.optimizer, learning_rate=2e-5),
    seed=43,
)
student = stage("distill_bert_base")

config = Pipeline(
    workdir="runs/pipeline_bert_base",
    stages={
        "tower_a": tower_a,
        "tower_b": tower_b,
        "jtcse": starting_from(stage("jtcse_bert_base"), "tower_a", "tower_b"),
        "distilled": dataclasses.replace(
            starting_from(student, "jtcse#0"),
            objective=dataclasses.replace(student.objective, teacher="jtcse"),
        ),
    },
)
