"""Stage 1: unsupervised SimCSE of one RoBERTa-base tower, as published (arXiv 2104.08821).

    python -m jtcse_jax.train --config configs/simcse_roberta_base.py --data.source TEXT

For a second tower see `configs/simcse_bert_base.py`; with round-trip translations the learning
rates of RoBERTa's towers are 1.5e-5 and 1.25e-5.
"""

from jtcse_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig

config = Config(
    workdir="runs/simcse_roberta_base_a",
    model=ModelConfig(towers=("roberta-base",), compute_dtype="bfloat16"),
    data=DataConfig(max_len=32, batch_size=512),
    objective=ObjectiveConfig(name="simcse", mlp_head=True),
    optimizer=OptimizerConfig(
        learning_rate=1e-5, schedule="linear", weight_decay=0.0, max_grad_norm=1.0
    ),
    eval_every=125,
    save_every=125,
)
