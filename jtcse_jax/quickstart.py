"""`python -m jtcse_jax.quickstart --config FILE [--any.field VALUE ...]`: trains, prints examples.

Trains as `jtcse_jax.train` does. Then it prints the nearest sentence to each of three queries, once
by the start model of the first tower and once by the trained model. The sentences are those of the
built-in dev set.
"""

import jax
import rich
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from jtcse_jax.config import SCRATCH, Config
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.evaluation.sts import builtin_dev
from jtcse_jax.runtime.command import training_command
from jtcse_jax.store import saved_model
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.training.trainer import train

QUERIES = (
    "What is returned if nothing was found?",
    "How much RAM does it take?",
    "Nobody came to swim.",
)


def nearest(model: SavedModel) -> list[tuple[str, float]]:
    """For each of `QUERIES` the nearest sentence of the built-in dev set, and their cosine."""
    pairs = builtin_dev()
    encoder = SentenceEncoder.of(model)
    encoder.build_index(dict.fromkeys([*pairs.first, *pairs.second]))
    hits = [encoder.search(query, top_k=1)[0] for query in QUERIES]
    return [(hit.sentence, hit.score) for hit in hits]


def show(config: Config) -> None:
    """Prints the examples of a finished run, and the next command; on one process only.

    It prints nothing if the towers started from random weights.
    """
    if SCRATCH in config.model.towers or jax.process_count() > 1:
        return
    trained = saved_model.load(config.workdir)
    start = saved_model.load(config.model.towers[0], pooling=trained.bank.pooling)
    for query, *found in zip(QUERIES, nearest(start), nearest(trained), strict=True):
        table = Table("", "cosine", query, box=SIMPLE_HEAD, pad_edge=False)
        for when, (sentence, cosine) in zip(("before", "after"), found, strict=True):
            table.add_row(when, f"{cosine:.3f}", Text(sentence))
        rich.print(table)
    print("To train on your own text, one sentence per line, with scored pairs as development set:")
    print("  bash launch/local.sh --config configs/quickstart_minilm.py --data.source TEXT \\")
    print("    --data.dev PAIRS.tsv --workdir runs/mine --max-steps 300")


def train_and_show(config: Config) -> None:
    """Trains, then prints the examples; errors as `train`."""
    train(config)
    show(config)


main = training_command("quickstart", Config, train_and_show)


if __name__ == "__main__":
    main()
