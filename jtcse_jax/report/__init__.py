"""`python -m jtcse_jax.report`: one HTML page about training runs."""
