"""Trains, evaluates and uses unsupervised sentence encoders (JTCSE and its family) in JAX."""

__version__ = "0.1.0"
