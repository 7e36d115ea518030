"""`python -m jtcse_jax.examples --config FILE [--any.field VALUE ...]`: a run, seen in examples.

Prints the sentence that is nearest to each of three queries, by the model that a finished run
started from and by the model that it trained. The sentences are those of the built-in dev set.
"""

import logging

import rich
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from jtcse_jax import config_file
from jtcse_jax.compilation import keep_compiled
from jtcse_jax.config import Config
from jtcse_jax.encoder import SentenceEncoder
from jtcse_jax.errors import one_line_errors
from jtcse_jax.evaluation.sts import builtin_dev

QUERIES = (
    "What is returned if nothing was found?",
    "How much RAM does it take?",
    "Nobody came to swim.",
)


def nearest(model: str) -> list[tuple[str, float]]:
    """For each of `QUERIES` the nearest sentence of the built-in dev set, and their cosine.

    Raises UserError as `SentenceEncoder.load` does.
    """
    pairs = builtin_dev()
    encoder = SentenceEncoder.load(model)
    encoder.build_index(dict.fromkeys([*pairs.first, *pairs.second]))
    hits = [encoder.search(query, top_k=1)[0] for query in QUERIES]
    return [(hit.sentence, hit.score) for hit in hits]


@one_line_errors
def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    keep_compiled()
    config = config_file.parse(Config, "jtcse_jax.examples")
    before, after = nearest(config.model.towers[0]), nearest(config.workdir)
    for query, *found in zip(QUERIES, before, after, strict=True):
        table = Table("", "cosine", query, box=SIMPLE_HEAD, pad_edge=False)
        for when, (sentence, cosine) in zip(("before", "after"), found, strict=True):
            table.add_row(when, f"{cosine:.3f}", Text(sentence))
        rich.print(table)
    print("Your own text, one sentence a line, and scored pairs as a development set:")
    print("  bash launch/local.sh --config configs/quickstart_minilm.py --data.source TEXT \\")
    print("    --data.dev PAIRS.tsv --workdir runs/mine --max-steps 300")


if __name__ == "__main__":
    main()
