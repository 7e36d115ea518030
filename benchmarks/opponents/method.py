"""The computation of both PyTorch trainers: JTCSE and TNCSE (arXiv 2505.02366, 2503.12739) over two
`transformers.BertModel`. `published.py` and `well_made.py` differ only in speed.

The BERT of transformers has no crossed values, so the streams run over its layer modules.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import (
    BertLayer,
    BertSelfAttention,
    eager_attention_forward,
)

Pair = Sequence[Tensor]  # one tensor of each tower


class Trainer(ABC):
    """Two towers and their optimizer; a subclass defines how the loss is computed.

    Args:
      towers: two towers of one shape, trained in place.
      objective: "jtcse" or "tncse".
      temperature: divides the cosines.
      cross_interval: layers k, 2k, ... cross (jtcse); None for none.
      dropout, attention_dropout: rates.
      learning_rate: constant.
      device: "cpu" or "cuda".
      dtype: "float32", or "bfloat16" for autocast; losses and poolers are float32 in both.
      max_len: length of the longest sentence, in tokens.
      pad_id: padding token.
      seed: seed of the random direction.
    """

    attention: str  #: the implementation in transformers, "eager" or "sdpa"
    fused: bool | None = None  #: option of AdamW; None for torch's own choice

    def __init__(
        self,
        towers: Sequence[BertModel],
        *,
        objective: str,
        temperature: float = 0.05,
        cross_interval: int | None = 2,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        learning_rate: float = 1.3e-6,
        device: str = "cpu",
        dtype: str = "float32",
        max_len: int = 64,
        pad_id: int = 0,
        seed: int = 0,
    ):
        prepare(towers, self.attention, dropout, attention_dropout)
        self.towers = [tower.to(device) for tower in towers]
        self.crossing = objective == "jtcse"
        self.interval = cross_interval if self.crossing else None
        self.temperature = temperature
        self.device, self.dtype = device, dtype
        self.max_len, self.pad_id = max_len, pad_id
        self.coin = random.Random(seed)
        parameters = [weight for tower in self.towers for weight in tower.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, fused=self.fused)

    def step(self, sentences: Sequence[Sequence[int]]) -> "Loss":
        """Dispatches a step on sentences of token ids; returns the loss before the update."""
        flip = self.crossing and self.coin.random() < 0.5
        loss = self.loss(sentences, flip)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return Loss(loss)

    def autocast(self) -> torch.autocast:
        """The context in which the towers compute."""
        device = torch.device(self.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.dtype == "bfloat16")

    @abstractmethod
    def loss(self, sentences: Sequence[Sequence[int]], flip: bool) -> Tensor:
        """The loss; `flip` as in `total_loss`."""


class Loss:
    """A loss on its way to the host; `float` waits for its own step and for no later one."""

    def __init__(self, loss: Tensor):
        """Starts the copy."""
        self._value = loss.detach().to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if loss.is_cuda else None
        if self._copied:
            self._copied.record()

    def __float__(self) -> float:
        if self._copied:
            self._copied.synchronize()
        return self._value.item()


def prepare(
    towers: Sequence[BertModel], attention: str, dropout: float, attention_dropout: float
) -> None:
    """Sets the towers' attention implementation and dropout rates, and training mode."""
    for tower in towers:
        tower.set_attn_implementation(attention)
        tower.train()
        for module in tower.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        for module in tower.modules():
            if isinstance(module, BertSelfAttention):
                module.dropout.p = attention_dropout


def two_views(
    sentences: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Token ids [2B, length] of every sentence twice, in rows 2i and 2i + 1, and a mask of them."""
    ids = np.full((len(sentences), length), pad_id, np.int64)
    for row, sentence in zip(ids, sentences, strict=True):
        row[: len(sentence)] = sentence
    lengths = np.array([len(sentence) for sentence in sentences])
    real = np.arange(length) < lengths[:, None]
    return tuple(torch.from_numpy(x).repeat_interleave(2, dim=0) for x in (ids, real))


def plain_layer(layer: BertLayer, hidden: Tensor, mask: Tensor) -> Tensor:
    """One layer of one tower."""
    return layer(hidden, mask)


def crossed_layer(layers: Sequence[BertLayer], hidden: Pair, mask: Tensor) -> list[Tensor]:
    """The same layer of both towers; each tower weights the other tower's values."""
    values = [_heads(layer, "value", x) for layer, x in zip(layers, hidden, strict=True)]
    return [
        _with_values(layer, x, value, mask)
        for layer, x, value in zip(layers, hidden, reversed(values), strict=True)
    ]


def streams(
    towers: Sequence[BertModel],
    ids: Tensor,
    mask: Tensor,
    interval: int | None,
    plain: Callable[[BertLayer, Tensor, Tensor], Tensor] = plain_layer,
    cross: Callable[[Sequence[BertLayer], Pair, Tensor], Pair] = crossed_layer,
) -> tuple[Pair, Pair]:
    """Last hidden states [N, L, D] of the plain and of the crossed stream of each tower.

    The crossed streams have the towers' own weights, exchange values in the layers interval,
    2 * interval, ... (counted from one) and equal the plain ones before the first of these.

    Args:
      ids: [N, L] token ids.
      mask: in the form for the towers' attention implementation, [N, 1, 1, L].
      interval: None for no crossed layer.
      plain, cross: the layer functions, compiled or not.
    """
    hidden = crossed = [tower.embeddings(input_ids=ids) for tower in towers]
    every = zip(*(tower.encoder.layer for tower in towers), strict=True)
    for number, layers in enumerate(every, start=1):
        hidden = [plain(*pair, mask) for pair in zip(layers, hidden, strict=True)]
        if interval is None or number < interval:
            crossed = hidden
        elif number % interval:
            crossed = [plain(*pair, mask) for pair in zip(layers, crossed, strict=True)]
        else:
            crossed = cross(layers, crossed, mask)
    return hidden, crossed


def total_loss(
    hidden: Pair,
    pooled: Pair,
    crossed: Pair | None,
    *,
    flip: bool,
    nce: Callable[[Tensor, Tensor], Tensor],
    modulus: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """L_NCE + L_ICNCE + L_ICTM for vectors [2B, D] of each tower.

    Args:
      hidden, pooled, crossed: [CLS] before and after the pooler, and of the crossed streams, which
        are None for TNCSE.
      flip: between towers, tower b's vectors are the anchors instead of a's.
      nce, modulus: NCE(x, y) and T(x, y, p, q).
    """
    a, b = (1, 0) if flip else (0, 1)
    within = nce(hidden[0], hidden[0]) + nce(hidden[1], hidden[1])
    between = nce(hidden[a], hidden[b])
    if crossed is not None:
        between = between + nce(crossed[a], crossed[b])
    there = modulus(hidden[0], hidden[1], pooled[0], pooled[1])
    back = modulus(hidden[1], hidden[0], pooled[1], pooled[0])
    return within + between + there + back


def _heads(layer: BertLayer, projection: str, hidden: Tensor) -> Tensor:
    """[N, H, L, d] of one of the layer's projections."""
    attention = layer.attention.self
    projected = getattr(attention, projection)(hidden)
    shape = (*hidden.shape[:-1], attention.num_attention_heads, attention.attention_head_size)
    return projected.view(shape).transpose(1, 2)


def _with_values(layer: BertLayer, hidden: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The layer with given values [N, H, L, d] in place of its own."""
    attention = layer.attention.self
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )
    context, _ = attend(
        attention,
        _heads(layer, "query", hidden),
        _heads(layer, "key", hidden),
        value,
        mask,
        dropout=attention.dropout.p if attention.training else 0.0,
        scaling=attention.scaling,
    )
    attended = layer.attention.output(context.reshape(hidden.shape), hidden)
    return layer.feed_forward_chunk(attended)
