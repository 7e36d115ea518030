"""JTCSE-D on RoBERTa: distils the two towers of `configs/jtcse_roberta_base.py` into one.

    python -m jtcse_jax.train --config configs/distill_roberta_base.py --data.source TEXT \\
        --data.dev STSB

The student starts from the first of the two towers. The authors' loss is not public; this one is
NCE(student, student) + NCE(student, teacher). Learning rate and batch are those of TNCSE-D (arXiv
2503.12739, supplement). The teacher may be an ensemble, as in the authors' UC-D:

    python -m jtcse_jax.train --config configs/distill_roberta_base.py --data.source TEXT \\
        --data.dev STSB --workdir runs/distill_uc_roberta --objective.teacher uc.json \\
        --optimizer.learning-rate 1.5e-5 --data.batch-size 128
"""

from jtcse_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig

config = Config(
    workdir="runs/distill_roberta_base",
    model=ModelConfig(towers=("runs/jtcse_roberta_base#0",), compute_dtype="bfloat16"),
    data=DataConfig(max_len=64, batch_size=256),
    objective=ObjectiveConfig(name="distill", teacher="runs/jtcse_roberta_base"),
    optimizer=OptimizerConfig(learning_rate=1e-5),
)
