"""`python -m jtcse_jax.train --config FILE [--any.field VALUE ...]`: trains a bank of towers."""

from jtcse_jax.errors import one_line_errors
from jtcse_jax.training.trainer import train_from_command_line


@one_line_errors
def main() -> None:
    """The command line."""
    train_from_command_line("jtcse_jax.train")


if __name__ == "__main__":
    main()
