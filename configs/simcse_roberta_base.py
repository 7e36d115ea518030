"""Stage 1: unsupervised SimCSE of one RoBERTa-base tower (arXiv 2104.08821).

    python -m jtcse_jax.train --config configs/simcse_roberta_base.py --data.source TEXT

Batch and learning rate are those of SimCSE's README. JTCSE and TNCSE need two towers that differ.
If the two views differ only by dropout, make the towers differ by seed and learning rate:

    python -m jtcse_jax.train --config configs/simcse_roberta_base.py --data.source TEXT \\
        --workdir runs/simcse_roberta_base_b --seed 43 --optimizer.learning-rate 7e-6

With the round-trip translations of JTCSE's authors (a .tsv of sentence and translation for each
tower, Dutch and Chinese), use the authors' batch size and learning rates:

    python -m jtcse_jax.train --config configs/simcse_roberta_base.py --data.source rtt_nl.tsv \\
        --data.batch-size 64 --optimizer.learning-rate 1.5e-5
    python -m jtcse_jax.train --config configs/simcse_roberta_base.py --data.source rtt_zh.tsv \\
        --workdir runs/simcse_roberta_base_b --data.batch-size 64 \\
        --optimizer.learning-rate 1.25e-5
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
