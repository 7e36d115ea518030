"""`python -m benchmarks.losses`: only the losses of JTCSE, forward and backward, on the CPU.

The inputs are vectors of two towers (of the plain streams, their poolers and the crossed streams).
Our compiled losses are compared with vectorised PyTorch and with PyTorch like the authors' public
scripts, whose broadcast cosines take 12 GB and more than ten seconds at 512 rows; use fewer
`--rows` on a small machine.

`seconds` is the median of a call. `memory` is the peak growth of a process during its calls, over
its memory before the first; `planned` is XLA's own count of temporaries and results.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.race import Contender, memory, outcome_fields, race, report
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.files import check_replaceable

TEMPERATURE = 0.05
OURS = "ours (JAX)"
DEFAULT_ROUNDS = 5


@one_line_errors
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__)
    parser.add_argument("--rows", type=int, default=512, help="vectors per tower, two per sentence")
    parser.add_argument("--size", type=int, default=768, help="size of a vector")
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS, help="measured calls")
    parser.add_argument("--without-published", action="store_true", help="leave out the slow one")
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    arguments = parser.parse_args()
    shape = {"rows": arguments.rows, "size": arguments.size}
    contenders = {
        OURS: Contender(ours, shape, {"JAX_PLATFORMS": "cpu"}),
        "PyTorch, well made": Contender(torch_losses, shape | {"opponent": "well_made"}),
    }
    if not arguments.without_published:
        contenders["PyTorch, as published"] = Contender(
            torch_losses, shape | {"opponent": "published"}
        )
    outcomes = race(contenders, rounds=arguments.rounds, turns=1)
    rows = [
        {
            "losses": name,
            "seconds": outcome.median,
            "times ours": outcome.median / outcomes[OURS].median,
            "memory MB": outcome.numbers["grown_bytes"] / 1e6,
            "planned MB": outcome.numbers["planned_bytes"] / 1e6 if name == OURS else None,
            "loss": outcome.numbers["loss"],
        }
        for name, outcome in outcomes.items()
    ]
    every = {name: outcome_fields(outcome) for name, outcome in outcomes.items()}
    report("losses", rows, arguments.output, vectors=shape, outcomes=every)


def ours(rows: int, size: int) -> Callable[[], dict[str, float]]:
    """Loss and gradients of our objective, compiled before the function is returned."""
    import jax

    from jtcse_jax.batch import Batch
    from jtcse_jax.config import ObjectiveConfig
    from jtcse_jax.models.towers import TowerOutputs
    from jtcse_jax.training.objectives import weighted_sum
    from jtcse_jax.training.terms import between_towers, tensor_modulus, within_towers

    config = ObjectiveConfig(name="jtcse", temperature=TEMPERATURE)
    batch = Batch(*(None,) * 5, mask=np.ones(rows // 2, bool))

    def total(outputs: TowerOutputs, batch: Batch) -> jax.Array:
        flip = np.bool_(False)
        between = between_towers(outputs.hidden, batch, config, flip=flip)
        terms = {
            "nce": within_towers(outputs.hidden, batch, config),
            "icnce": between + between_towers(outputs.crossed, batch, config, flip=flip),
            "ictm": tensor_modulus(outputs, batch, config),
        }
        return weighted_sum(terms, config)

    outputs = TowerOutputs(*map(jax.numpy.asarray, vectors(rows, size)))
    compiled = jax.jit(jax.value_and_grad(total)).lower(outputs, batch).compile()
    plan = compiled.memory_analysis()
    planned = plan.temp_size_in_bytes + plan.output_size_in_bytes

    def work() -> dict[str, float]:
        loss, _ = jax.block_until_ready(compiled(outputs, batch))
        return {"loss": float(loss), "planned_bytes": planned}

    return with_growth(work)


def torch_losses(rows: int, size: int, opponent: str) -> Callable[[], dict[str, float]]:
    """Loss and gradients of an opponent, `published` or `well_made`."""
    import importlib

    import torch

    total_loss = importlib.import_module(f"benchmarks.opponents.{opponent}").total_loss
    leaves = [
        [torch.from_numpy(tower).requires_grad_() for tower in vector]
        for vector in vectors(rows, size)
    ]

    def work() -> dict[str, float]:
        for leaf in (tower for vector in leaves for tower in vector):
            leaf.grad = None
        loss = total_loss(*leaves, flip=False, temperature=TEMPERATURE)
        loss.backward()
        return {"loss": loss.item()}

    return with_growth(work)


def vectors(rows: int, size: int) -> np.ndarray:
    """[3, 2, rows, size] float32: h, p and c of two towers; views of a sentence are similar."""
    random = np.random.default_rng(0)
    sentences = np.repeat(random.normal(size=(3, 1, rows // 2, size)), 2, axis=2)
    return (sentences + 0.5 * random.normal(size=(3, 2, rows, size))).astype(np.float32)


def with_growth(work: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """`work`, which also returns the growth of the process since before its first call."""
    forget_peak()
    before = memory("VmRSS")

    def measured() -> dict[str, Any]:
        return work() | {"grown_bytes": memory("VmHWM") - before}

    return measured


def forget_peak() -> None:
    """Resets this process's peak resident memory to its current memory (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
