"""The PyTorch trainer that a good engineer would write: the same loss, faster.

Differences from `published.py`: rows are padded to the longest sentence rounded up to 8, and sorted
by length into `groups` that are padded separately (their vectors are joined before the losses,
which need the whole batch but not its order); `sdpa` attention; crossed streams that share the
plain streams' work up to the first crossed layer; normalised vectors multiplied as matrices; no
loop over pairs; fused AdamW; no wait for the device in a step.

`compiled` passes layers and losses through torch.compile, layer by layer, so that two towers of
twelve layers are compiled once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertModel

from benchmarks.opponents import method


class Trainer(method.Trainer):
    """Trains as a good engineer would.

    Args as in `method.Trainer`, and:
      groups: number of groups of rows by length.
      compiled: whether to use torch.compile.
    """

    attention = "sdpa"
    fused = True

    def __init__(
        self,
        towers: Sequence[BertModel],
        *,
        groups: int = 1,
        compiled: bool = False,
        **options: Any,
    ):
        super().__init__(towers, **options)
        self.on_gpu = torch.device(self.device).type == "cuda"
        self.groups = groups
        functions = method.plain_layer, method.crossed_layer, total_loss
        if compiled:
            functions = [torch.compile(function) for function in functions]
        self.plain, self.cross, self.total_loss = functions

    def loss(self, sentences: Sequence[Sequence[int]], flip: bool) -> Tensor:
        """The loss; `flip` as in `method.total_loss`."""
        by_length = np.argsort([len(sentence) for sentence in sentences], kind="stable")
        parts = np.array_split(by_length, min(self.groups, len(sentences)))
        vectors = [self._vectors([sentences[i] for i in part]) for part in parts]
        hidden, crossed = (
            [torch.cat(pieces).float() for pieces in zip(*stream, strict=True)]
            for stream in zip(*vectors, strict=True)
        )
        # The pooler takes the first token of each row: here there is only one.
        pooled = [tower.pooler(x[:, None]) for tower, x in zip(self.towers, hidden, strict=True)]
        crossed = crossed if self.crossing else None
        return self.total_loss(hidden, pooled, crossed, flip, self.temperature)

    def _vectors(self, sentences: Sequence[Sequence[int]]) -> tuple[method.Pair, method.Pair]:
        """[CLS] of the two views of each sentence, for the plain and the crossed streams."""
        longest = max(len(sentence) for sentence in sentences)
        length = min(-(-longest // 8) * 8, self.max_len)
        ids, real = (self._on_device(x) for x in method.two_views(sentences, length, self.pad_id))
        with self.autocast():
            mask = real[:, None, None, :]
            states = method.streams(self.towers, ids, mask, self.interval, self.plain, self.cross)
        return tuple([x[:, 0] for x in stream] for stream in states)

    def _on_device(self, x: Tensor) -> Tensor:
        return x.pin_memory().to(self.device, non_blocking=True) if self.on_gpu else x


def total_loss(
    hidden: method.Pair,
    pooled: method.Pair,
    crossed: method.Pair | None,
    flip: bool,
    temperature: float,
) -> Tensor:
    """`method.total_loss` with the losses below."""

    def scaled_nce(x: Tensor, y: Tensor) -> Tensor:
        return nce(x, y, temperature)

    return method.total_loss(hidden, pooled, crossed, flip=flip, nce=scaled_nce, modulus=modulus)


def nce(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """NCE(x, y) for rows [2B, D], float32."""
    rows = torch.arange(len(x), device=x.device)
    logits = F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T / temperature
    itself = rows[:, None] == rows[None, :]
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), rows ^ 1)


def modulus(x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """T(x, y, p, q) for rows [2B, D], float32."""
    x, y, p, q = x[0::2], y[1::2], p[0::2], q[1::2]
    cosine = F.cosine_similarity(x, y, dim=-1)
    direction = -torch.log(torch.where(cosine > 0, cosine, 1e-4))
    lengths = torch.linalg.vector_norm(p, dim=-1) + torch.linalg.vector_norm(q, dim=-1)
    return (direction * torch.linalg.vector_norm(p - q, dim=-1) / lengths / 2).mean()
