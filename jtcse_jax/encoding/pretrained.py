"""What sentence-transformers' users ask of a model besides vectors: its properties, saving it."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jtcse_jax.encoding.bank_encoder import BankEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.store import ensemble, exported, hub
from jtcse_jax.store.ensemble import Member
from jtcse_jax.store.saved_model import SavedModel


class Pretrained:
    """Properties and files, for a class with `banks`, `width` and the classmethod `of`."""

    banks: tuple[BankEncoder, ...]
    width: int
    members: tuple[Member, ...] | None
    of: Any

    def __repr__(self) -> str:
        """The model, its towers and pooling, the size of a vector and the longest sentence."""
        banks = " + ".join(
            f"{encoder.bank.num_towers} tower(s), {encoder.bank.pooling} pooling, at most "
            f"{encoder.serving_length} tokens"
            for encoder in self.banks
        )
        source = f"{ensemble.source(self.members)}: " if self.members else ""
        return f"{type(self).__name__}({source}{banks}; vectors of {self.width})"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process: the model with its parameters on the host, no index."""
        return type(self).of, (
            tuple(
                Member(
                    weight,
                    dataclasses.replace(model, params=jax.tree.map(np.asarray, model.params)),
                )
                for weight, model in self._models()
            ),
        )

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer; of an ensemble, that of its first member."""
        return self._models()[0].model.tokenizer

    @property
    def max_seq_length(self) -> int:
        """The longest sentence in tokens; longer ones are cut. An ensemble has its shortest.

        It can be set, for all members of an ensemble, up to the positions of the model; what
        `save_pretrained` writes then has the new length. An index keeps its vectors. Raises
        UserError for another value.
        """
        return min(bank.serving_length for bank in self.banks)

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        before = [bank.serving_length for bank in self.banks]
        try:
            for bank in self.banks:
                bank.serving_length = length
        except UserError as error:
            for bank, old in zip(self.banks, before, strict=True):
                bank.serving_length = old
            raise UserError(f"max_seq_length: {error}") from error
        self.members = self.members and tuple(
            Member(weight, dataclasses.replace(model, serving_length=length))
            for weight, model in self.members
        )
        self.__dict__.pop("mteb_model_meta", None)  # its hash is that of the old length

    def get_embedding_dimension(self) -> int:
        """The size of a vector."""
        return self.width

    def get_sentence_embedding_dimension(self) -> int:
        """The older name of `get_embedding_dimension`."""
        return self.width

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that sentence-transformers and transformers open, see `exported.export`.

        Raises UserError for an ensemble, and if the folder is not empty or cannot be written.
        """
        exported.export(self._model(), folder)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Uploads what `save_pretrained` writes; returns the address. Errors as `hub.push`."""
        hub.check_name(name)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "model")
            return hub.push(Path(folder) / "model", name, private=private)

    def _model(self) -> SavedModel:
        (_, model), *others = self._models()
        if others:
            raise UserError(
                "An ensemble is not one folder: distil it into one tower and save that."
            )
        return model

    def _models(self) -> Sequence[Member]:
        if self.members is None:
            raise UserError("Make the encoder with SentenceEncoder.load or SentenceEncoder.of.")
        return self.members
