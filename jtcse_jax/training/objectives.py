"""Objectives: what the bank computes for a batch, and the loss with its named terms.

An objective is a `forward` and a `loss`. To add one, write both functions here and add a line to
`OBJECTIVES` and a line to `TRAITS` in `traits.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.errors import UserError
from jtcse_jax.models import mlm_head
from jtcse_jax.models.parts import initializer
from jtcse_jax.models.towers import Bank, Params, TowerOutputs, sum_towers
from jtcse_jax.training import losses
from jtcse_jax.training.masking import mask_tokens
from jtcse_jax.training.terms import (
    Terms,
    between_towers,
    contrast,
    health,
    split_views,
    tensor_modulus,
    within_towers,
)


@dataclass(frozen=True)
class Objective:
    """A loss in two parts, so that a batch may be too large for one forward pass.

    forward: `(bank, params, batch, key, config) -> outputs`, a pytree of float arrays [K, N, ...]
      whose second axis runs over the batch: its sentence views or its tokens.
    loss: `(bank, outputs, batch, key, config) -> (loss, terms)`, for the outputs of the whole
      batch; it reads only `mask` and `target` of `batch`. `terms` holds all terms, unweighted.
    negatives: `(batch_size, config) -> count`, the sentence views that each anchor of a full batch
      is compared with, without hard negatives.
    head: `(bank, key, config) -> params` of a new training-only head, or None if it has none.
    """

    forward: Callable[[Bank, Params, Batch, Array, ObjectiveConfig], Any]
    loss: Callable[[Bank, Any, Batch, Array, ObjectiveConfig], tuple[Array, Terms]]
    negatives: Callable[[int, ObjectiveConfig], int]
    head: Callable[[Bank, Array, ObjectiveConfig], Params | None] = lambda *_: None

    def __call__(
        self, bank: Bank, params: Params, batch: Batch, key: Array, config: ObjectiveConfig
    ) -> tuple[Array, Terms]:
        """The loss and its terms for a batch, in one forward pass."""
        outputs = self.forward(bank, params, batch, key, config)
        return self.of_outputs(bank, outputs, batch, key, config)

    def of_outputs(
        self, bank: Bank, outputs: Any, batch: Batch, key: Array, config: ObjectiveConfig
    ) -> tuple[Array, Terms]:
        """The loss and its terms for the outputs of the whole batch.

        With `config.matryoshka` it is the sum of the losses of the first d components, for each d
        (arXiv 2205.13147); the terms are those of the largest d, and `loss_at_d` of each.
        """
        if not config.matryoshka:
            return self.loss(bank, outputs, batch, key, config)
        each = {
            d: self.loss(bank, first_components(outputs, d), batch, key, config)
            for d in sorted(config.matryoshka, reverse=True)
        }
        loss = sum((loss for loss, _ in each.values()), start=jnp.zeros(()))
        _, terms = each[max(each)]
        return loss, terms | {f"loss_at_{d}": loss for d, (loss, _) in each.items()}


def first_components(outputs: Any, count: int) -> Any:
    """The outputs with sentence vectors [..., count]; the pooler's outputs stay whole."""
    if isinstance(outputs, TowerOutputs):
        return outputs._replace(
            hidden=outputs.hidden[..., :count], crossed=outputs.crossed[..., :count]
        )
    streams, vectors = outputs  # of `projected_streams`
    return first_components(streams, count), vectors[..., :count]


def plain_streams(
    bank: Bank, params: Params, batch: Batch, key: Array, config: ObjectiveConfig
) -> TowerOutputs:
    """Runs the plain streams only."""
    return bank.apply(params["towers"], batch, key=key)


def crossed_streams(
    bank: Bank, params: Params, batch: Batch, key: Array, config: ObjectiveConfig
) -> TowerOutputs:
    """Runs the crossed streams beside the plain ones."""
    dropout_key, _ = jax.random.split(key)
    return bank.apply(params["towers"], batch, key=dropout_key, crossed=True)


def projected_streams(
    bank: Bank, params: Params, batch: Batch, key: Array, config: ObjectiveConfig
) -> tuple[TowerOutputs, Array]:
    """Runs the plain streams; returns them and the head's vectors [K, VB, D], if there is one."""
    outputs = plain_streams(bank, params, batch, key, config)
    if not config.mlp_head:
        return outputs, outputs.hidden
    head = params["head"]
    projected = jnp.einsum(
        "knd,kde->kne", outputs.hidden, head["kernel"], precision=jax.lax.Precision.HIGHEST
    )
    return outputs, jnp.tanh(projected + head["bias"][:, None])


def simcse_loss(
    bank: Bank,
    outputs: tuple[TowerOutputs, Array],
    batch: Batch,
    key: Array,
    config: ObjectiveConfig,
) -> tuple[Array, Terms]:
    """SimCSE (arXiv 2104.08821), summed over independent towers."""
    streams, vectors = outputs
    nce = losses.info_nce if config.simcse_negatives == "all" else losses.info_nce_other_view
    loss = sum((contrast(x, x, batch, config, nce) for x in vectors), start=jnp.zeros(()))
    return loss, {"nce": loss} | health(streams, batch)


def tncse_loss(
    bank: Bank, outputs: TowerOutputs, batch: Batch, key: Array, config: ObjectiveConfig
) -> tuple[Array, Terms]:
    """TNCSE (arXiv 2503.12739): no cross-attention, and always in the direction a -> b."""
    terms = {
        "nce": within_towers(outputs.hidden, batch, config),
        "icnce": between_towers(outputs.hidden, batch, config),
        "ictm": tensor_modulus(outputs, batch, config),
    }
    return weighted_sum(terms, config), terms | health(outputs, batch)


def jtcse_loss(
    bank: Bank, outputs: TowerOutputs, batch: Batch, key: Array, config: ObjectiveConfig
) -> tuple[Array, Terms]:
    """JTCSE (arXiv 2505.02366): L_NCE + L_ICNCE (also of the crossed streams) + L_ICTM."""
    _, coin_key = jax.random.split(key)
    # One coin per step decides the direction for all pairs of towers.
    flip = jax.random.bernoulli(coin_key)
    icnce = between_towers(outputs.hidden, batch, config, flip=flip)
    if bank.cross.mode != "off":
        icnce += between_towers(outputs.crossed, batch, config, flip=flip)
    terms = {
        "nce": within_towers(outputs.hidden, batch, config),
        "icnce": icnce,
        "ictm": tensor_modulus(outputs, batch, config),
    }
    return weighted_sum(terms, config), terms | health(outputs, batch)


def distillation_loss(
    bank: Bank, outputs: TowerOutputs, batch: Batch, key: Array, config: ObjectiveConfig
) -> tuple[Array, Terms]:
    """Distils a frozen teacher's embeddings, `batch.target`, into the bank.

    contrastive: NCE(s, s) + NCE(s, t); listwise: the teacher's ranking within the batch.
    """
    student = sum_towers(outputs.hidden)
    assert batch.target is not None  # the training step has set it
    target = jax.lax.stop_gradient(batch.target)
    if config.distillation == "listwise":
        ours, wanted = split_views(student, batch), split_views(target, batch)
        terms = {
            "listwise": losses.listwise(
                ours.pairs,
                wanted.pairs,
                temperature=config.student_temperature,
                teacher_temperature=config.teacher_temperature,
                mask=ours.mask,
                negatives=(ours.negatives, wanted.negatives),
            )
        }
    else:
        terms = {
            "nce": contrast(student, student, batch, config),
            "teacher": contrast(student, target[:, : student.shape[1]], batch, config),
        }
    return sum(terms.values(), start=jnp.zeros(())), terms | health(outputs, batch)


def guesses(
    bank: Bank, params: Params, batch: Batch, key: Array, config: ObjectiveConfig
) -> dict[str, Array]:
    """Guesses the words that `mask_tokens` hid; arrays [K, N] float32 over all places.

    `nll` is -log of the true token's probability, `right` is 1 if that token has the highest
    probability, and `chosen` is 1 if the place counts.
    """
    assert config.mask_token_id is not None  # `find_mask_token` has set it
    mask_key, dropout_key = jax.random.split(key)
    masked = mask_tokens(
        batch.tokens,
        batch.segments,
        mask_key,
        share=config.mask_share,
        mask_id=config.mask_token_id,
        vocab_size=bank.architecture.vocab_size,
    )
    towers = params["towers"]
    rows = batch._replace(tokens=masked.tokens)
    at_places = bank.hidden_states(towers, rows, key=dropout_key, places=masked.places)

    def tower(head: Params, embedding: Array, hidden: Array) -> dict[str, Array]:
        scores = mlm_head.logits(head, embedding, hidden, bank.architecture)
        of_places = {
            "nll": losses.token_cross_entropy(scores, masked.targets),
            "right": (scores.argmax(axis=-1) == masked.targets) & masked.chosen,
            "chosen": masked.chosen,
        }
        return {name: each.reshape(-1).astype(jnp.float32) for name, each in of_places.items()}

    return jax.vmap(tower)(params["head"], towers["embeddings"]["word"]["embedding"], at_places)


def mlm_loss(
    bank: Bank, outputs: dict[str, Array], batch: Batch, key: Array, config: ObjectiveConfig
) -> tuple[Array, Terms]:
    """Masked language modelling (arXiv 1810.04805), summed over independent towers."""
    chosen = outputs["chosen"] > 0
    loss = sum(map(losses.masked_mean, outputs["nll"], chosen), start=jnp.zeros(()))
    right = outputs["right"].sum(axis=1) / jnp.maximum(chosen.sum(axis=1), 1)
    return loss, {"mlm": loss, "accuracy": right.mean()}


def all_others(batch_size: int, config: ObjectiveConfig) -> int:
    """Both views of all other sentences."""
    return 2 * batch_size - 2


def simcse_others(batch_size: int, config: ObjectiveConfig) -> int:
    """One view of all other sentences, or both."""
    return (batch_size - 1) * (1 if config.simcse_negatives == "other_view" else 2)


def ranked_others(batch_size: int, config: ObjectiveConfig) -> int:
    """One view of all other sentences if they are ranked, else both."""
    return (batch_size - 1) * (1 if config.distillation == "listwise" else 2)


def dense_head(bank: Bank, key: Array, config: ObjectiveConfig) -> Params | None:
    """A dense layer [D, D] per tower, if the config asks for one."""
    if not config.mlp_head:
        return None
    count, size = bank.num_towers, bank.architecture.hidden_size
    return {"kernel": initializer(key, (count, size, size)), "bias": jnp.zeros((count, size))}


def vocabulary_head(bank: Bank, key: Array, config: ObjectiveConfig) -> Params:
    """The head of masked language modelling."""
    return mlm_head.init(bank.architecture, bank.num_towers, key)


OBJECTIVES = {
    "simcse": Objective(projected_streams, simcse_loss, simcse_others, dense_head),
    "tncse": Objective(plain_streams, tncse_loss, all_others),
    "jtcse": Objective(crossed_streams, jtcse_loss, all_others),
    "distill": Objective(plain_streams, distillation_loss, ranked_others),
    "mlm": Objective(guesses, mlm_loss, lambda *_: 0, vocabulary_head),
}


def init_params(
    bank: Bank, towers: Params, key: Array, config: ObjectiveConfig, head: Params | None = None
) -> Params:
    """The trained parameters: the bank's towers, and a training-only head if there is one.

    `head` is a trained head of mlm to continue with, leaves [K, ...]. Raises UserError if
    `config.matryoshka` names more components than the vectors have.
    """
    width = bank.architecture.hidden_size
    if max(config.matryoshka, default=0) > width:
        raise UserError(
            f"objective.matryoshka = {config.matryoshka}: the model's vectors have {width} "
            "components: name no more."
        )
    head = head or OBJECTIVES[config.name].head(bank, key, config)
    return {"towers": towers} if head is None else {"towers": towers, "head": head}


def negatives_per_anchor(batch_size: int, views: int, config: ObjectiveConfig) -> int:
    """Number of sentence views that each anchor of a full batch is compared with; 0 if none."""
    hard = max(views - 2, 0) * batch_size
    return OBJECTIVES[config.name].negatives(batch_size, config) + hard


def weighted_sum(terms: Terms, config: ObjectiveConfig) -> Array:
    """The loss: the sum of the terms times their weights."""
    return (
        config.nce_weight * terms["nce"]
        + config.icnce_weight * terms["icnce"]
        + config.ictm_weight * terms["ictm"]
    )
