"""The packed batch: the interface between the data and the model.

Dimension letters used everywhere: K towers, B sentences in a batch, V views of each (two, and any
hard negatives after them), R rows, P row length in tokens, C slots per row, D hidden size, H heads.
"""

from typing import Any, NamedTuple

# An array of jax or numpy. In a tree of shapes or of shardings it is one of these instead.
Leaf = Any


class Batch(NamedTuple):
    """Several sentences in each row; attention stays inside a sentence because of `segments`.

    A padded batch is the special case of one sentence per row. If a step runs micro-batches one
    after the other, every array has a leading axis over them, and `order` counts within each.
    """

    tokens: Leaf  #: [R, P] int32, token ids; fillers are the padding token
    positions: Leaf  #: [R, P] int32, position inside its sentence, from 0
    segments: Leaf  #: [R, P] int32, 1 + the slot of the token's sentence; fillers: 0
    cls_positions: Leaf  #: [R, C] int32, position of slot c's first token (unused: 0)
    order: Leaf  #: [V * B] int32, flat slot index r * C + c of view j of sentence j // V
    mask: Leaf  #: [B] bool, False for sentences missing in a partial last batch
    teacher: tuple["Batch", ...] = ()  #: the same views, in the tokens of each teacher bank
    target: Leaf | None = None  #: [V * B, D] float32, the teacher's embeddings, set inside the step

    @property
    def has_micro_batches(self) -> bool:
        """Whether the arrays have a leading axis over micro-batches."""
        return self.tokens.ndim == 3
