"""Two small towers from random weights, on the English of Python's own documentation.

    bash launch/local.sh

It needs no download and shows that the machine trains, saves, resumes and evaluates; it does not
give a useful encoder (for that: `configs/quickstart_minilm.py`).
"""

from jtcse_jax.config import (
    Architecture,
    Config,
    Cross,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
)

config = Config(
    workdir="runs/quickstart",
    model=ModelConfig(
        towers=("scratch", "scratch"),
        scratch=Architecture(
            vocab_size=4096,
            hidden_size=128,
            num_layers=4,
            num_heads=4,
            intermediate_size=512,
            max_positions=64,
        ),
        cross=Cross(num_layers=2),
    ),
    data=DataConfig(source="stdlib", pairs="adjacent", max_len=32, row_length=64, dev="builtin"),
    objective=ObjectiveConfig(name="jtcse"),
    optimizer=OptimizerConfig(learning_rate=3e-4, schedule="linear", warmup_steps=20),
    max_steps=300,
    eval_every=100,
    save_every=100,
)
