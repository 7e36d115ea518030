"""Chooses the tokens that a masked language model must guess, inside the training step.

Devlin et al. 2019 (arXiv 1810.04805): 15 % of the tokens are chosen; of these 80 % become the
masking token, 10 % a random token and 10 % stay. [CLS], [SEP] and fillers are never chosen.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

MASKED, RANDOM = 0.8, 0.1  # shares of the chosen tokens


class Masked(NamedTuple):
    """Rows with M words to guess in each."""

    tokens: Array  #: [R, P] int32, the rows with words hidden
    places: Array  #: [R, M] int32, positions of the words in the row
    targets: Array  #: [R, M] int32, the original tokens there
    chosen: Array  #: [R, M] bool, False if a row has fewer than M words to guess


def mask_tokens(
    tokens: Array, segments: Array, key: Array, *, share: float, mask_id: int, vocab_size: int
) -> Masked:
    """Chooses `share` of the words of each row, at least one, and hides them.

    The share is fixed per row, not drawn for each token: M is then a constant, and the vocabulary's
    logits are computed for those words only. The number of words is rounded to the nearest integer,
    as in BERT's code; rounding down would hide a smaller share of short rows.

    Args:
      tokens: [R, P] int32.
      segments: [R, P] int32, as in `Batch`; the first and last token of a sentence are special.
      key: random key of this step.
      share: share of the words, in (0, 1).
      mask_id: id of the mask token.
      vocab_size: random tokens are drawn below it.
    """
    choice_key, fate_key, random_key = jax.random.split(key, 3)
    words = _words(segments)
    most = max(1, round(share * (tokens.shape[1] - 2)))  # [CLS] and [SEP] are not words
    # The M words with the highest random scores are a random subset.
    scores = jnp.where(words, jax.random.uniform(choice_key, tokens.shape), -1)
    _, places = jax.lax.top_k(scores, most)
    counts = words.sum(axis=1)
    wanted = jnp.where(counts > 0, jnp.maximum(1, jnp.round(share * counts)), 0)
    chosen = jnp.arange(most) < wanted[:, None]
    targets = jnp.take_along_axis(tokens, places, axis=1)
    fate = jax.random.uniform(fate_key, places.shape)
    random = jax.random.randint(random_key, places.shape, 0, vocab_size)
    hidden = jnp.where(fate < MASKED, mask_id, jnp.where(fate < MASKED + RANDOM, random, targets))
    hidden = jnp.where(chosen, hidden, targets)
    shown = jnp.put_along_axis(tokens, places, hidden, axis=1, inplace=False)
    return Masked(shown, places, targets, chosen)


def _words(segments: Array) -> Array:
    """[R, P] bool: tokens inside a sentence, except its first and its last."""
    before = jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    after = jnp.pad(segments, ((0, 0), (0, 1)))[:, 1:]
    return (segments > 0) & (segments == before) & (segments == after)
