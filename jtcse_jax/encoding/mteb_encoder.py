"""The methods, besides `encode`, that MTEB needs of an encoder; mteb is imported only if used."""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from jax import Array

from jtcse_jax.encoding import similarity
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
            "similarity_fn_name": self.similarity_fn_name,
            "use_instructions": False,
        }
        unknown: dict[str, Any] = {
            name: None for name, field in ModelMeta.model_fields.items() if field.is_required()
        }
        return ModelMeta(**unknown | known)

    @property
    def similarity_fn_name(self) -> str:
        """How the model's folder compares two vectors: cosine, dot, euclidean or manhattan."""
        similarities = [bank.serving.similarity for bank in self.banks]
        return similarities[0] if len(similarities) == 1 else "cosine"

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
        """[n, m] similarities, by `similarity_fn_name`, of vectors [n, D] and [m, D].

        Raises UserError for anything but vectors.
        """
        return similarity.similarity(self.similarity_fn_name, first, second)

    def similarity_pairwise(
        self, first: np.ndarray | Array, second: np.ndarray | Array
    ) -> np.ndarray:
        """[n] similarities of vectors [n, D] and [n, D], row by row; UserError for others."""
        return similarity.similarity_pairwise(self.similarity_fn_name, first, second)


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


def _slug(source: str) -> str:
    return re.sub(r"[^\w.]+", "-", source).strip("-")[-80:] or "model"
