"""A training step of two towers: ours against PyTorch, and against the device's limit.

    python -m benchmarks.train_step --text sentences.txt --batch 8 --output train_step.json

Every contender gets the same token ids, batch after batch, and random weights. Padding or packing
them is part of the step, tokenising the text is not. As in the trainer, a step is dispatched before
the loss of the step before is read. A round is the steps that fill `--seconds`, and its time is per
step. Ours has one number of rows, enough for all batches; the trainer has two. `real tokens/s`
counts the tokens of both views in one tower. `first step` is that of a fresh process: tracing and
compiling, without imports; it does not compile what JAX_COMPILATION_CACHE_DIR, if set, already has.

`--trace FOLDER` writes a trace of ten of our steps there, and the text of their program, for
`python -m benchmarks.trace`.
"""

import argparse
import gzip
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsFloat

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.limits import SIZES, bandwidth, floor, product_rate
from benchmarks.race import UNITS, Contender, outcome_fields, race, report
from benchmarks.text import add_options, token_ids
from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.batch import Batch
from jtcse_jax.config import ModelConfig, ObjectiveConfig, OptimizerConfig
from jtcse_jax.data.packing import fill, pack, usual_row_length, usual_slots
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank
from jtcse_jax.runtime import sharding
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.files import check_replaceable
from jtcse_jax.training.flops import Work, crossed_layers
from jtcse_jax.training.optimizer import make_optimizer
from jtcse_jax.training.train_step import TrainState, TrainStep, init_state, make_train_step

OURS = "ours"
TRACED = 10  # steps
PROGRAM = "step.hlo.gz"  # text of the traced program
ROW_LENGTH = usual_row_length(64)
SLOTS = usual_slots(ROW_LENGTH)
Sentences = list[list[int]]


@one_line_errors
def main() -> None:
    """Measures, prints a table for each objective and writes them as JSON."""
    options = _read_options()
    batches = token_ids(
        options.text, options.tokenizer, options.max_len, options.batch, options.batches
    )
    rate, copy = product_rate(options.dtype), bandwidth()
    rows, outcomes, failed = [], {}, {}
    for objective in options.objective:
        architecture = SIZES[options.size]
        crossed = crossed_layers(architecture, half(architecture)) if objective == "jtcse" else 0
        lowest = [
            floor(
                *(architecture, work, options.dtype, rate.median, copy.median),
                crossed_layers=crossed,
            )
            for work in map(work_of, batches)
        ]
        tokens = np.mean([work_of(batch).tokens for batch in batches])
        common = {"objective": objective, "size": options.size, "batches": batches}
        common |= {"seconds": options.seconds, "dtype": options.dtype}
        contenders = {OURS: Contender(ours, common)}
        device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        for name in options.against:
            module, own = OPPONENTS[name]
            own = {"module": module, "max_len": options.max_len, "device": device} | own
            contenders[name] = Contender(theirs, common | own)
        # The first call is the first step, the second takes every batch once: torch.compile
        # compiles again at the second length.
        lost: dict[str, str] = {}
        raced = race(contenders, options.rounds, warmup=2, turns=options.turns, failed=lost)
        if OURS in lost:
            raise UserError(f"{OURS}: {lost[OURS]}")
        failed |= {f"{objective}, {name}": reason for name, reason in lost.items()}
        outcomes[objective] = {name: outcome_fields(one) for name, one in raced.items()}
        for name, outcome in raced.items():
            rows.append(
                {
                    f"{options.size}, {options.batch} sentences": f"{objective}, {name}",
                    "dtype": contenders[name].arguments["dtype"],
                    "s a step": outcome.median,
                    "times ours": outcome.median / raced[OURS].median,
                    "sentences/s": options.batch / outcome.median,
                    "real tokens/s": tokens / outcome.median,
                    "% of floor": 100 * float(np.mean(lowest)) / outcome.median,
                    "first step s": outcome.first_seconds,
                    "peak GB": outcome.peak_bytes / 1e9,
                    "peak of": outcome.peak_of,
                }
            )
    fields = {key: value for key, value in vars(options).items() if key not in ("output", "trace")}
    limits = {"product_rate": rate, "bandwidth": copy, "mean_tokens": float(tokens)}
    if options.trace:
        options.trace.mkdir(parents=True, exist_ok=True)
        arguments = {key: common[key] for key in ("objective", "size", "batches", "dtype")}
        contender = Contender(traced, arguments | {"folder": str(options.trace)})
        race({"trace": contender}, rounds=1, warmup=0, turns=1, failed=failed)
    report(
        "train step",
        rows,
        options.output,
        failed,
        options=fields,
        limits=limits,
        outcomes=outcomes,
    )


def _read_options() -> argparse.Namespace:
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--objective", nargs="+", choices=("tncse", "jtcse"), default=["tncse"])
    parser.add_argument("--batch", type=int, default=8 if on_cpu else 64, help="sentences")
    parser.add_argument("--max-len", type=int, default=64)
    parser.add_argument("--batches", type=int, default=8, help="number of different batches")
    parser.add_argument("--dtype", default="float32" if on_cpu else "bfloat16")
    parser.add_argument("--against", nargs="*", choices=OPPONENTS, default=[*OPPONENTS])
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of a round")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds per process")
    parser.add_argument("--turns", type=int, default=2, help="processes per contender")
    parser.add_argument("--trace", type=Path, help="folder for a trace (of the last objective)")
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    return parser.parse_args()


# The published scripts are float32; the others have our dtype. For the well made one: into how many
# groups rows are sorted by length, and whether it is compiled.
OPPONENTS = {
    "as published": ("published", {"dtype": "float32"}),
    "as published, bfloat16": ("published", {"dtype": "bfloat16"}),
    "well made": ("well_made", {"groups": 1}),
    "well made, 4 groups": ("well_made", {"groups": 4}),
    "well made, compiled": ("well_made", {"groups": 1, "compiled": True}),
}


def work_of(sentences: Sentences) -> Work:
    """The work of one tower for both views."""
    lengths = np.array([len(sentence) for sentence in sentences], np.float64)
    return Work(2 * lengths.sum(), 2 * (lengths**2).sum(), 2 * len(lengths))


def ours(
    objective: str, size: str, batches: list[Sentences], seconds: float, dtype: str
) -> Callable[[], dict[str, float]]:
    """Rounds of the trainer's step: packing, placing and running the jitted step."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    step, state = step_and_state(objective, size, dtype, mesh)
    key = jax.random.key(0)
    most = max(map(rows_of, batches))

    def dispatch(sentences: Sentences) -> jax.Array:
        nonlocal state
        batch = sharding.place_batch(mesh, packed(sentences, most))
        state, metrics = step(state, batch, key)
        return metrics["loss"]

    return in_rounds(dispatch, batches, seconds)


def in_rounds(
    dispatch: Callable[[Sentences], SupportsFloat], batches: list[Sentences], seconds: float
) -> Callable[[], dict[str, float]]:
    """Work for `race` that steps through the batches as the trainer does, one step ahead.

    `dispatch` starts a step and returns its loss, which `float` waits for. The first call is one
    step. Later calls take at least `seconds`, and the second takes every batch.
    """
    done = 0

    def work() -> dict[str, float]:
        nonlocal done
        start, began, unread = done, time.perf_counter(), None
        while done == start or (
            start and (done <= len(batches) or time.perf_counter() - began < seconds)
        ):
            loss = dispatch(batches[done % len(batches)])
            done += 1
            if unread is not None:
                float(unread)
            unread = loss
        return {"loss": float(unread), UNITS: done - start}

    return work


def traced(
    objective: str, size: str, batches: list[Sentences], dtype: str, folder: str
) -> Callable[[], None]:
    """Writes a trace of TRACED steps of the trainer, and the text of the program, into a folder."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    step, state = step_and_state(objective, size, dtype, mesh)
    key = jax.random.key(0)
    most = max(map(rows_of, batches))
    placed = [sharding.place_batch(mesh, packed(batch, most)) for batch in batches]
    compiled = step.lower(state, placed[0], key).compile()
    (Path(folder) / PROGRAM).write_bytes(gzip.compress(compiled.as_text().encode()))

    def run(count: int) -> None:
        nonlocal state
        for number in range(count):
            state, _ = compiled(state, placed[number % len(placed)], key, step.frozen)
        jax.block_until_ready(state)

    def work() -> None:
        run(2)
        with jax.profiler.trace(folder):
            run(TRACED)

    return work


def step_and_state(
    objective: str, size: str, dtype: str, mesh: Mesh, *, abstract: bool = False
) -> tuple[TrainStep, TrainState]:
    """The trainer's step for two towers with random weights, every second layer crossed.

    With `abstract` the state has only shapes: the step can be compiled but not run.
    """
    architecture = SIZES[size]
    towers = ("scratch", "scratch")
    config = ModelConfig(towers=towers, compute_dtype=dtype, cross=half(architecture))
    bank = Bank.from_config(config, architecture, mesh)
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    if abstract:
        state = jax.eval_shape(
            lambda bank: init_state({"towers": bank}, optimizer, mesh), bank.abstract()
        )
    else:
        state = init_state({"towers": bank.init(0)}, optimizer, mesh)
    shardings = sharding.state_shardings(mesh, state)
    step = make_train_step(bank, ObjectiveConfig(name=objective), optimizer, shardings)
    return step, (sharding.abstract if abstract else sharding.place)(state, shardings)


def half(architecture: Architecture) -> Cross:
    """Every second layer crosses, as published."""
    return Cross(num_layers=architecture.num_layers // 2)


def rows_of(sentences: Sentences) -> int:
    """Rows that both views of the sentences need."""
    return pack(_lengths(sentences), ROW_LENGTH, SLOTS).num_rows


def packed(sentences: Sentences, num_rows: int) -> Batch:
    """Both views of each sentence, in rows like the trainer's."""
    lengths = _lengths(sentences)
    plan = pack(lengths, ROW_LENGTH, SLOTS)
    arrays = fill(
        plan,
        lambda view: np.asarray(sentences[view // 2], np.int32),
        num_rows,
        pad_id=0,
    )
    return Batch(*arrays, order=plan.order, mask=np.ones(len(lengths) // 2, bool))


def theirs(
    objective: str,
    size: str,
    batches: list[Sentences],
    seconds: float,
    module: str,
    **arguments: Any,
) -> Callable[[], dict[str, float]]:
    """Rounds of an opponent's step."""
    import importlib

    import torch
    from transformers import BertConfig, BertModel

    architecture = SIZES[size]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=architecture.vocab_size,
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_heads,
        intermediate_size=architecture.intermediate_size,
    )
    trainer = importlib.import_module(f"benchmarks.opponents.{module}").Trainer(
        [BertModel(config), BertModel(config)],
        objective=objective,
        cross_interval=2,
        **arguments,
    )
    return in_rounds(trainer.step, batches, seconds)


def _lengths(sentences: Sentences) -> np.ndarray:
    return np.repeat([len(sentence) for sentence in sentences], 2)


if __name__ == "__main__":
    main()
