"""Encoders of other libraries for evaluation: all that sentence-transformers can load."""

import hashlib
from typing import Any

import numpy as np

from jtcse_jax.errors import UserError

PREFIX = "sentence-transformers:"


class ForeignEncoder:
    """A model of sentence-transformers, with the pooling, length and scaling of its folder.

    Attributes:
      source: its name, with the prefix.
      model: the `SentenceTransformer`.
      fingerprint: sha256 (hex) of everything that determines the vectors: modules, tokenizer,
        weights, truncation.
    """

    def __init__(self, name: str, truncate_dim: int | None = None):
        """Loads `name`, a folder or hub name after `sentence-transformers:`.

        `truncate_dim` keeps only so many components of each vector. Raises UserError if the package
        is not installed or cannot load the model, or a vector has fewer components.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(
                f"{name} needs the package sentence-transformers: pip install sentence-transformers"
            ) from error
        self.source = name
        folder = name.removeprefix(PREFIX)
        try:
            # Otherwise, if a model has only pickled weights, these would be opened.
            self.model = SentenceTransformer(folder, model_kwargs={"use_safetensors": True})
        except Exception as error:  # types of many libraries; the user needs the message
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise UserError(f"{name}: sentence-transformers cannot load it: {reason[0]}") from error
        asked = self.model.truncate_dim if truncate_dim is None else truncate_dim
        # Before any sentence is encoded, because this changes settings of the tokenizer.
        self.fingerprint = self._fingerprint(asked)
        if truncate_dim is not None:
            self.model.truncate_dim = None
            check_truncate_dim(truncate_dim, self.width)
            self.model.truncate_dim = truncate_dim

    @property
    def width(self) -> int:
        """Size of a vector."""
        return self.encode([""]).shape[1]

    def encode(self, sentences: list[str]) -> np.ndarray:
        """[n, D] float32 vectors."""
        return np.asarray(self.model.encode(sentences, show_progress_bar=False), np.float32)

    def describe(self) -> dict[str, Any]:
        """What its scores depend on."""
        return {
            "weight": 1.0,
            "model": self.source,
            "towers": 1,
            "pooling": " + ".join(type(module).__name__ for module in self.model),
            "serving_length": self.model.max_seq_length,
        }

    def _fingerprint(self, truncate_dim: int | None) -> str:
        model = self.model
        digest = hashlib.sha256(str(model).encode())
        network, tokenizer = getattr(model[0], "auto_model", None), model.tokenizer
        parts = [model.max_seq_length, model.prompts, model.default_prompt_name]
        if truncate_dim is not None:
            parts.append(truncate_dim)
        if network is not None:
            parts.append(network.config.to_json_string())
        if getattr(tokenizer, "is_fast", False):
            parts.append(tokenizer.backend_tokenizer.to_str())
        digest.update(repr(parts).encode())
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.float().cpu().numpy()).data)
        return digest.hexdigest()


def check_truncate_dim(truncate_dim: int, width: int) -> None:
    """Raises UserError unless vectors of `width` components can be cut to `truncate_dim`."""
    if not 1 <= truncate_dim <= width:
        raise UserError(f"--truncate-dim {truncate_dim}: choose 1 to {width}.")
