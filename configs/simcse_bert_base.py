"""Stage 1: unsupervised SimCSE of one BERT-base tower, as published (arXiv 2104.08821).

    python -m jtcse_jax.train --config configs/simcse_bert_base.py --data.source TEXT

A twin needs two towers that differ. With dropout views alone, by seed and learning rate:

    python -m jtcse_jax.train --config configs/simcse_bert_base.py --data.source TEXT \\
        --workdir runs/simcse_bert_base_b --seed 43 --optimizer.learning-rate 2e-5

With round-trip translations (one pivot language a tower; learning rates 1.5e-5 and 2e-5 for BERT)
TEXT is a .tsv of sentence and translation.
"""

from jtcse_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig

config = Config(
    workdir="runs/simcse_bert_base_a",
    model=ModelConfig(towers=("bert-base-uncased",), compute_dtype="bfloat16"),
    data=DataConfig(max_len=32, batch_size=64),
    objective=ObjectiveConfig(name="simcse", mlp_head=True),
    optimizer=OptimizerConfig(
        learning_rate=3e-5, schedule="linear", weight_decay=0.0, max_grad_norm=1.0
    ),
    eval_every=125,
    save_every=125,
)
