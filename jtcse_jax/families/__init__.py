"""Encoder families: for each, its config and weight names at Hugging Face, and its encoder."""
