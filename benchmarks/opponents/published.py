"""A PyTorch trainer like the authors' public scripts (GitHub tianyuzong/JTCSE and /TNCSE).

As in the scripts: two Hugging Face BERTs one after the other; eager attention; float32 with torch's
own defaults (the scripts do not use autocast, `dtype="bfloat16"` does); every sentence padded to
`max_len`, twice; cosines of all rows by broadcasting to [2B, 2B, D], also in the modulus loss,
where a Python loop then takes one cosine per pair and asks the device whether it is negative; a
random direction per step (JTCSE); `torch.optim.AdamW` with its defaults. Reading, moving and
training on a batch do not overlap.

Not as in the scripts: their crossed BERT is a private fork, so its way of running the crossed
streams is unknown. Here they share the plain streams' work up to the first crossed layer, which is
the cheapest interpretation. Sentences are padded in the step instead of being stored padded
(microseconds each), and the layers are called without the rest of BertModel's forward pass.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.opponents import method


class Trainer(method.Trainer):
    """Trains as the scripts do: every row is `max_len` long."""

    attention = "eager"

    def loss(self, sentences: Sequence[Sequence[int]], flip: bool) -> Tensor:
        """The loss; `flip` as in `method.total_loss`."""
        ids, real = method.two_views(sentences, self.max_len, self.pad_id)
        ids, real = ids.to(self.device), real.to(self.device)
        mask = (~real[:, None, None, :]).float() * torch.finfo(torch.float32).min
        with self.autocast():
            states = method.streams(self.towers, ids, mask, self.interval)
        hidden, crossed = ([x[:, 0].float() for x in stream] for stream in states)
        # The pooler takes the first token of each row: here there is only one.
        pooled = [tower.pooler(x[:, None]) for tower, x in zip(self.towers, hidden, strict=True)]
        crossed = crossed if self.crossing else None
        return total_loss(hidden, pooled, crossed, flip=flip, temperature=self.temperature)


def total_loss(
    hidden: method.Pair,
    pooled: method.Pair,
    crossed: method.Pair | None,
    *,
    flip: bool,
    temperature: float,
) -> Tensor:
    """`method.total_loss` with the losses below."""
    nce = partial(broadcast_nce, temperature=temperature)
    return method.total_loss(hidden, pooled, crossed, flip=flip, nce=nce, modulus=looped_modulus)


def broadcast_nce(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """NCE(x, y) for rows [2B, D], with the vectors repeated to [2B, 2B, D]."""
    rows = torch.arange(len(x), device=x.device)
    cosines = F.cosine_similarity(x[:, None], y[None, :], dim=-1)
    itself = torch.eye(len(x), device=x.device)
    return F.cross_entropy((cosines - 1e12 * itself) / temperature, rows ^ 1)


def looped_modulus(x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """T(x, y, p, q) for rows [2B, D], pair by pair."""
    cosines = F.cosine_similarity(x[:, None], y[None, :], dim=-1)
    total = 0.0
    for row in range(0, len(x), 2):
        cosine = cosines[row][row + 1]
        if cosine < 0:  # waits for the device
            cosine = torch.tensor(1e-4, device=x.device)
        length, other = torch.norm(p[row]), torch.norm(q[row + 1])
        modulus = torch.norm(p[row] - q[row + 1]) / (length + other) / 2
        total = total - torch.log(cosine) * modulus
    return total / (len(x) / 2)
