"""The last hidden state of every token, of an encoder with one tower."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jax import Array

from jtcse_jax.batch import Batch
from jtcse_jax.encoding.bank_encoder import PART, BankEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank, Params


def token_embeddings(
    encoders: Sequence[BankEncoder], sentences: Sequence[str], prompts: Sequence[str]
) -> list[np.ndarray]:
    """[tokens, D] float32 for each sentence, with its special tokens and those of the prompt.

    `encoders` and `prompts` have one element. Raises UserError if there are several banks, or the
    bank has several towers, and as `BankEncoder.encode`.
    """
    if len(encoders) > 1 or encoders[0].bank.num_towers > 1:
        raise UserError("output_value = 'token_embeddings' needs one tower: name one, NAME#0.")
    (encoder,), (prompt,) = encoders, prompts
    found: list[np.ndarray] = [np.empty(0)] * len(sentences)
    for start in range(0, len(sentences), PART):
        placed = encoder.place(sentences[start : start + PART], prompt)
        for numbers, batch in placed.calls:
            states = np.asarray(_states(encoder.bank, encoder.params, batch))
            segments, slots = np.asarray(batch.segments), batch.cls_positions.shape[1]
            for number, place in zip(numbers.tolist(), np.asarray(batch.order), strict=False):
                row, slot = divmod(int(place), slots)
                found[start + number] = states[row, segments[row] == slot + 1]
    return found


@partial(jax.jit, static_argnums=0)
def _states(bank: Bank, params: Params, batch: Batch) -> Array:
    return bank.hidden_states(params, batch)[0].astype("float32")
