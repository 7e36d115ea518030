"""Two tiny towers, long enough to be stopped in the middle; tests/slurm/run.sh gives the text."""

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
    model=ModelConfig(
        towers=("scratch", "scratch"),
        scratch=Architecture(
            vocab_size=200,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            intermediate_size=32,
            max_positions=32,
        ),
        cross=Cross(num_layers=1),
    ),
    data=DataConfig(max_len=16, row_length=32, batch_size=8),
    objective=ObjectiveConfig(name="jtcse"),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    max_steps=200,
    save_every=10,
    log_every=20,
)
