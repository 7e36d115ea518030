"""The tests' tiny towers, long enough to be stopped in the middle; run.sh gives the text."""

from runs import DATA, MODEL, OPTIMIZER  # of tests/, which run.sh puts on the path

from jtcse_jax.config import Config

config = Config(
    model=MODEL,
    data=DATA,
    optimizer=OPTIMIZER,
    max_steps=200,
    save_every=10,
    log_every=20,
)
