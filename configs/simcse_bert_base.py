"""Stage 1: unsupervised SimCSE of one BERT-base tower (arXiv 2104.08821).

    python -m jtcse_jax.train --config configs/simcse_bert_base.py --data.source TEXT

All numbers are those of SimCSE's own script. JTCSE and TNCSE need two towers that differ. If the
two views differ only by dropout, make the towers differ by seed and learning rate:

    python -m jtcse_jax.train --config configs/simcse_bert_base.py --data.source TEXT \\
        --workdir runs/simcse_bert_base_b --seed 43 --optimizer.learning-rate 2e-5

With the round-trip translations of JTCSE's authors (a .tsv of sentence and translation for each
tower), use the authors' learning rates:

    python -m jtcse_jax.train --config configs/simcse_bert_base.py --data.source rtt_fr.tsv \\
        --optimizer.learning-rate 1.5e-5
    python -m jtcse_jax.train --config configs/simcse_bert_base.py --data.source rtt_ru.tsv \\
        --workdir runs/simcse_bert_base_b --optimizer.learning-rate 2e-5
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
