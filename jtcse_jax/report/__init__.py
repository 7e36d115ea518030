"""`python -m jtcse_jax.report`: runs as one page to look at."""
