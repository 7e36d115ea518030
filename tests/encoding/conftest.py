"""A small model and its encoder, for the modules of this room."""

import pytest
from tiny_models import tiny_model

from jtcse_jax.encoding.encoder import SentenceEncoder


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def embed(model):
    return SentenceEncoder.of(model)
