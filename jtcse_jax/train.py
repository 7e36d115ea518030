"""`python -m jtcse_jax.train --config FILE [--any.field VALUE ...]`: trains a bank of towers."""

from jtcse_jax.config import Config
from jtcse_jax.runtime.command import training_command
from jtcse_jax.training.trainer import train

main = training_command("train", Config, train)

if __name__ == "__main__":
    main()
