"""The frozen teacher of a distillation: a weighted sum of banks that runs in the student's step."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from jtcse_jax.batch import Batch
from jtcse_jax.models.towers import Bank, Params, sum_towers


@dataclass(frozen=True)
class Teacher:
    """Banks whose weighted sum is the teacher's embedding."""

    banks: tuple[Bank, ...]
    weights: tuple[float, ...]
    params: tuple[Params, ...]  #: of each bank, on the devices

    def embed(self, params: tuple[Params, ...], batches: tuple[Batch, ...]) -> Array:
        """[2B, D] float32: the sum of weight * raw vector, without dropout.

        Args:
          params: `self.params`, passed in so that a compiled step takes them as an argument and
            does not store them as constants.
          batches: the same sentences in the tokens of each bank.
        """
        members = zip(self.weights, self.banks, params, batches, strict=True)
        vectors = (
            weight * sum_towers(bank.apply(own, batch).hidden)
            for weight, bank, own, batch in members
        )
        return sum(vectors, start=jnp.zeros(()))
