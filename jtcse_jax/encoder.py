"""`SentenceEncoder`: sentences in, vectors out."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jtcse_jax import saved_model, sharding
from jtcse_jax.batch import Batch
from jtcse_jax.data.packing import fill, pack
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank, Params, sum_towers
from jtcse_jax.saved_model import SavedModel

BLOCK = 8192  # sentences tokenised and packed together
ROW_LENGTH = 128  # tokens in a row, unless sentences can be longer
ROWS = 64  # most rows in a call of the model


class SentenceEncoder:
    """A bank of towers that encodes sentences: the sum of its towers' vectors.

    Sentences are packed into rows, and a call of the model has a power of two of rows, so that
    only a handful of shapes is ever compiled.
    """

    def __init__(
        self, bank: Bank, params: Params, tokenizer: Any, max_len: int, mesh: Mesh | None = None
    ):
        self.bank = bank
        self.params = params
        self.max_len = max_len
        self.mesh = mesh or bank.mesh or sharding.make_mesh(devices=jax.local_devices()[:1])
        self._tokenizer = tokenizer
        self._row_length = max(ROW_LENGTH, max_len)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        step: int | None = None,
        pooling: str | None = None,
        max_len: int | None = None,
    ) -> "SentenceEncoder":
        """The encoder in a workdir, an exported folder or a Hugging Face folder or hub name.

        Arguments and errors as `saved_model.load`.
        """
        return cls.of(saved_model.load(name, step=step, pooling=pooling, max_len=max_len))

    @classmethod
    def of(cls, model: SavedModel) -> "SentenceEncoder":
        """The encoder of a loaded model."""
        return cls(model.bank, model.params, model.tokenizer, model.max_len)

    def encode(self, sentences: str | Sequence[str], *, normalize: bool = False) -> np.ndarray:
        """[n, D] float32 vectors in the order of the sentences, or [D] for a single string.

        Sentences longer than `max_len` tokens are cut. `normalize` scales vectors to length 1;
        without it they are raw, and similarity is their cosine.
        """
        if isinstance(sentences, str):
            return self.encode([sentences], normalize=normalize)[0]
        vectors = np.zeros((len(sentences), self.bank.architecture.hidden_size), np.float32)
        for start in range(0, len(sentences), BLOCK):
            block = list(sentences[start : start + BLOCK])
            vectors[start : start + len(block)] = self._encode_block(block)
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def similarity(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """[n, m] cosines of vectors [n, D] and [m, D]."""
        first, second = np.atleast_2d(first), np.atleast_2d(second)
        norms = np.linalg.norm(first, axis=1)[:, None] * np.linalg.norm(second, axis=1)[None, :]
        return first @ second.T / np.maximum(norms, 1e-12)

    def _encode_block(self, sentences: list[str]) -> np.ndarray:
        tokens = self._tokenize(sentences)
        lengths = np.array([len(ids) for ids in tokens])
        slots = self._row_length // 4
        packing = pack(lengths, self._row_length, slots)
        vectors = np.empty((len(sentences), self.bank.architecture.hidden_size), np.float32)
        shardings = sharding.batch_shardings(self.mesh)
        for first_row in range(0, packing.num_rows, ROWS):
            rows = range(first_row, first_row + self._num_rows(packing.num_rows - first_row))
            arrays = fill(
                packing,
                lambda sentence: tokens[sentence],
                lengths,
                num_rows=max(rows.stop, packing.num_rows),
                row_length=self._row_length,
                slots=slots,
                pad_id=self.bank.architecture.pad_token_id,
                rows=rows,
            )
            every_slot = np.arange(len(rows) * slots, dtype=np.int32)
            batch = Batch(*arrays, order=every_slot, mask=np.ones(len(every_slot), bool))
            batch = sharding.place(batch, shardings)
            embedded = np.asarray(embed(self.bank, self.mesh, self.params, batch))
            here = np.flatnonzero((packing.rows >= rows.start) & (packing.rows < rows.stop))
            vectors[here] = embedded[packing.order[here] - first_row * slots]
        return vectors

    def _tokenize(self, sentences: list[str]) -> list[np.ndarray]:
        for sentence in sentences:
            if not isinstance(sentence, str):
                raise UserError(f"encode takes strings, and got {sentence!r}.")
        encoded = self._tokenizer(
            sentences,
            truncation=True,
            max_length=self.max_len,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return [np.asarray(ids, np.int32) for ids in encoded["input_ids"]]

    def _num_rows(self, remaining: int) -> int:
        """Rows of the next call: a power of two, a multiple of the data axis, at most ROWS."""
        shards = self.mesh.shape["data"]
        rows = min(ROWS, 1 << (remaining - 1).bit_length())
        return -(-rows // shards) * shards


@partial(jax.jit, static_argnums=(0, 1))
def embed(bank: Bank, mesh: Mesh, params: Params, batch: Batch) -> Array:
    """Sentence embeddings [N, D] float32, without dropout, in the order of `batch.order`."""
    vectors = sum_towers(bank.apply(params, batch).hidden)
    return jax.lax.with_sharding_constraint(vectors, sharding.replicated(mesh))
