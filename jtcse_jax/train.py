"""`python -m jtcse_jax.train --config FILE [--any.field VALUE ...]`: trains a bank of towers."""

import logging

from jtcse_jax import config_file, distributed
from jtcse_jax.config import Config
from jtcse_jax.errors import one_line_errors
from jtcse_jax.trainer import is_primary, set_up_jax, train


@one_line_errors
def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    with distributed.said_once():
        config = config_file.parse(Config, "jtcse_jax.train")
    set_up_jax(config.deterministic)
    if is_primary():
        logging.getLogger("jtcse_jax").setLevel(logging.INFO)
    train(config)


if __name__ == "__main__":
    main()
