"""The methods, besides `encode`, that MTEB needs of an encoder; mteb is imported only if used."""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from jax import Array

from jtcse_jax.encoding.bank_encoder import BankEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.store import ensemble
from jtcse_jax.store.ensemble import Member
from jtcse_jax.store.serving import Serving


class MtebEncoder:
    """Similarities and MTEB 2's `EncoderProtocol`, for a class with `banks` and `width`.

    `mteb.evaluate(encoder, tasks)` takes such an encoder directly. It must not have a method
    `index`: MTEB would then take our `search` for its own and search with it.
    """

    banks: tuple[BankEncoder, ...]
    width: int
    members: tuple[Member, ...] | None = None  #: the loaded models of the banks, if known

    @cached_property
    def mteb_model_meta(self) -> Any:
        """MTEB's `ModelMeta`: a name made from the model's path, and a hash of the whole model.

        MTEB stores results by name and revision. The hash is the revision, so that a model never
        gets the scores of another model of the same name. Raises UserError if mteb is not
        installed, and for an encoder made directly from banks, which has no such hash.
        """
        try:
            from mteb.models import ModelMeta
        except ImportError as error:
            raise UserError("This needs the package mteb: pip install mteb") from error
        if self.members is None:
            raise UserError(
                "MTEB needs to know the model: make the encoder with SentenceEncoder.load or "
                "SentenceEncoder.of."
            )
        known: dict[str, Any] = {
            "name": f"jtcse_jax/{_slug(ensemble.source(self.members))}",
            "revision": ensemble.fingerprint(self.members),
            "embed_dim": self.width,
            "max_tokens": max(bank.serving_length for bank in self.banks),
            "framework": ["JAX"],
            "similarity_fn_name": "cosine",
            "use_instructions": False,
        }
        unknown: dict[str, Any] = {
            name: None for name, field in ModelMeta.model_fields.items() if field.is_required()
        }
        return ModelMeta(**unknown | known)

    def mteb_prompts(self, task_metadata: Any, prompt_type: Any) -> list[str]:
        """The text that each bank puts before the sentences of a task, chosen by MTEB's rules.

        They look for prompts named after the task, its type and "query" or "document".
        """
        from mteb.models.abs_encoder import get_prompt_name

        def choose(serving: Serving) -> str:
            if serving.chosen_prompt is not None:
                return serving.chosen_prompt
            name = get_prompt_name(serving.all_prompts, task_metadata, prompt_type)
            return serving.prompt(name=name)

        return [choose(bank.serving) for bank in self.banks]

    def similarity(self, first: np.ndarray | Array, second: np.ndarray | Array) -> np.ndarray:
        """[n, m] cosines of vectors [n, D] and [m, D]; UserError for anything but vectors."""
        # Scaled before the product, so that only one [n, m] array is in memory.
        first, second = _scaled("similarity", first, second)
        return first @ second.T

    def similarity_pairwise(
        self, first: np.ndarray | Array, second: np.ndarray | Array
    ) -> np.ndarray:
        """[n] cosines of vectors [n, D] and [n, D], row by row; UserError for anything else."""
        first, second = _scaled("similarity_pairwise", first, second)
        if len(first) != len(second):
            raise UserError(
                f"similarity_pairwise takes equally many vectors on both sides, not {len(first)} "
                f"and {len(second)}."
            )
        return np.sum(first * second, axis=1)


class MtebTexts:
    """The texts in MTEB's batches, as an iterable of known length."""

    def __init__(self, batches: Any, task_metadata: Any):
        """Takes MTEB's loader of batches, torch's `DataLoader`; iteration reads it."""
        self.batches = batches
        self.task = task_metadata.name

    def __len__(self) -> int:
        """Number of texts, from the loader's data set."""
        return len(self.batches.dataset)

    def __iter__(self) -> Iterator[str]:
        """Yields the texts in order. UserError for batches without text (images or sound)."""
        for batch in self.batches:
            if "text" not in batch:
                raise UserError(f"{self.task} has {', '.join(batch)} but no text: leave it out.")
            yield from batch["text"]


def _scaled(name: str, *vectors: Any) -> list[np.ndarray]:
    """Scales vectors to length 1; zeros stay."""
    sides = [np.atleast_2d(side) for side in vectors]
    if not all(np.issubdtype(side.dtype, np.number) for side in sides):
        raise UserError(f"{name} takes vectors: encode the sentences first.")
    if sides[0].shape[-1] != sides[1].shape[-1]:
        raise UserError(
            f"{name} takes vectors of one width, not of {sides[0].shape[-1]} and "
            f"{sides[1].shape[-1]}."
        )
    return [side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in sides]


def _slug(source: str) -> str:
    return re.sub(r"[^\w.]+", "-", source).strip("-")[-80:] or "model"
