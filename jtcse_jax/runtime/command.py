"""The `main` of every command: sets up logging and JAX, parses the arguments, runs, and ends."""

import gc
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from jtcse_jax import config_file
from jtcse_jax.config import Config
from jtcse_jax.errors import UserError
from jtcse_jax.pipeline_config import Pipeline
from jtcse_jax.runtime import compilation, distributed
from jtcse_jax.runtime.failure import one_line_errors

T = TypeVar("T", Config, Pipeline)


def command(name: str, kind: Any, run: Callable[[Any], object]) -> Callable[[], None]:
    """The `main` of `python -m jtcse_jax.NAME`: runs `run` on arguments of the dataclass `kind`.

    Several kinds, `A | B`, are subcommands.
    """

    @one_line_errors
    def main() -> None:
        _log_warnings()
        compilation.keep_compiled()
        run(tyro.cli(kind, prog=f"python -m jtcse_jax.{name}"))

    return main


def training_command(name: str, kind: type[T], run: Callable[[T], object]) -> Callable[[], None]:
    """The `main` of a command that takes --config FILE and runs on all processes of a cluster."""

    @one_line_errors
    def main() -> None:
        _log_warnings()
        try:
            config = config_file.parse(kind, f"jtcse_jax.{name}")
        except UserError:
            # As one of several processes, so that the error is printed once and ends all of them.
            distributed.initialize()
            raise
        set_up_jax(config.deterministic)
        if distributed.is_primary():
            logging.getLogger("jtcse_jax").setLevel(logging.INFO)
        run(config)

    return main


def set_up_jax(deterministic: bool) -> None:
    """Settings that must be made before anything uses a device; see `Config.deterministic`."""
    # Orbax logs a traceback if a save fails, before our one-line error is raised.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Freezes the imported objects: a collection over them takes a quarter of tracing a step.
    gc.freeze()
    compilation.keep_compiled()
    if deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"
    distributed.initialize()


def _log_warnings() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
