"""One bank as an encoder: tokenises sentences, packs them into rows, runs the towers, sums them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jtcse_jax import sharding
from jtcse_jax.batch import Batch
from jtcse_jax.data.packing import Packing, fill, pack, usual_row_length
from jtcse_jax.data.tokens import truncating_backend
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank, Params, sum_towers
from jtcse_jax.saved_model import SavedModel

PART = 1024  # sentences of a device that are packed together

# The most tokens in a call of a device. On a CPU little, so that what a layer makes is still in
# the cache for the next.
CALL = {"cpu": 512}
USUAL_CALL = 8192


class Encoded(NamedTuple):
    """What a bank makes of n sentences."""

    vectors: np.ndarray  #: [n, D] float32, the sum of the towers' vectors, not scaled
    cut: np.ndarray  #: [n] bool, True where a sentence was longer than `max_len`


class BankEncoder:
    """A bank of towers, its tokenizer, and the devices it runs on.

    A call of the model has `most_rows` rows for each device, or a quarter, a 16th ..., so that no
    more than four shapes are ever compiled, whatever the sentences.

    Attributes:
      row_length: tokens in a row.
      most_rows: the most rows of a device in a call.
    """

    def __init__(
        self, bank: Bank, params: Params, tokenizer: Any, max_len: int, mesh: Mesh | None = None
    ):
        """Takes the parameters as they are: host arrays, or already on the devices of `mesh`.

        Args:
          bank: the towers' shape.
          params: leaves [K, ...].
          tokenizer: a fast transformers tokenizer; it is not changed.
          max_len: longest sentence in tokens, special tokens included.
          mesh: where it runs, rows over its devices; by default the bank's own mesh, or all
            devices of this process.
        Raises:
          UserError: a `max_len` that leaves no room for a token, or a tokenizer without [CLS].
        """
        self.bank = bank
        self.params = params
        self.max_len = max_len
        self.mesh = mesh or bank.mesh or sharding.make_mesh(devices=jax.local_devices())
        self._tokenizer = truncating_backend(tokenizer, max_len)
        if not self._tokenizer.num_special_tokens_to_add(is_pair=False):
            # An empty sentence would have no token, and no sentence a [CLS].
            raise UserError("The tokenizer adds no special tokens: use that of this model.")
        platform = self.mesh.devices.flat[0].platform
        self.row_length = usual_row_length(max_len)
        self.most_rows = max(1, CALL.get(platform, USUAL_CALL) // self.row_length)
        self._slots = self.row_length // 4  # more than in training: any text may come

    @classmethod
    def of(cls, model: SavedModel) -> "BankEncoder":
        """The encoder of a loaded model, its parameters copied to every device once.

        Raises UserError where a parameter is NaN or infinite, naming it.
        """
        _check_finite(model)
        encoder = cls(model.bank, model.params, model.tokenizer, model.max_len)
        shardings = sharding.whole_towers(encoder.mesh, model.params)
        encoder.params = jax.device_put(model.params, shardings)
        return encoder

    @property
    def width(self) -> int:
        """Components of a vector."""
        return self.bank.architecture.hidden_size

    def encode(
        self, sentences: Sequence[str], done: Callable[[int], None] = lambda count: None
    ) -> Encoded:
        """The vectors of sentences in their order; "" is one like others.

        `done` is told after each call of the model how many more are finished. Raises UserError
        for a string that is no valid Unicode.
        """
        size = PART * sharding.row_shards(self.mesh)
        parts = (sentences[start : start + size] for start in range(0, len(sentences), size))
        encoded = [Encoded(np.empty((0, self.width), np.float32), np.empty(0, bool))]
        # One part ahead: the devices work on a part while the next is tokenised and packed.
        for running, _ in pairwise(chain(map(self._start, parts), [None])):
            encoded.append(self._finish(running, done))
        return Encoded(*map(np.concatenate, zip(*encoded, strict=True)))

    def place(
        self, sentences: Sequence[str]
    ) -> tuple[Packing, np.ndarray, Iterator[tuple[range, Batch]]]:
        """What is packed where, [n] what was cut, and each call's rows and batch on the devices.

        The batches are made one by one as they are asked for. Errors as `encode`.
        """
        tokens, cut = self._tokenize(sentences)
        lengths = np.array([len(ids) for ids in tokens])
        packing = pack(lengths, self.row_length, self._slots)
        calls = self._calls(packing.num_rows)
        return packing, cut, ((rows, self._fill(packing, tokens, lengths, rows)) for rows in calls)

    def _start(self, sentences: Sequence[str]) -> "_Running":
        """Dispatches all calls of the model for some sentences, and waits for none."""
        packing, cut, batches = self.place(sentences)
        calls = [(rows, embed(self.bank, self.mesh, self.params, batch)) for rows, batch in batches]
        return _Running(packing, cut, calls)

    def _tokenize(self, sentences: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        try:
            encoded = self._tokenizer.encode_batch_fast(sentences)
        except TypeError as error:  # half a surrogate pair; the tokenizer does not say where
            raise UserError(f"A sentence is no valid Unicode text ({error}).") from error
        tokens = [np.array(encoding.ids, np.int32) for encoding in encoded]
        return tokens, np.array([bool(encoding.overflowing) for encoding in encoded], bool)

    def _calls(self, num_rows: int) -> list[range]:
        """The rows of each call: of each device `most_rows`, or a quarter ... if half are used."""
        shards = sharding.row_shards(self.mesh)
        calls, start = [], 0
        while start < num_rows:
            each = self.most_rows
            while each > 1 and each * shards > 2 * (num_rows - start):
                each = max(1, each // 4)
            calls.append(range(start, start + each * shards))
            start = calls[-1].stop
        return calls

    def _fill(
        self, packing: Packing, tokens: list[np.ndarray], lengths: np.ndarray, rows: range
    ) -> Batch:
        arrays = fill(
            packing,
            lambda sentence: tokens[sentence],
            lengths,
            num_rows=max(rows.stop, packing.num_rows),
            row_length=self.row_length,
            slots=self._slots,
            pad_id=self.bank.architecture.pad_token_id,
            rows=rows,
        )
        every_slot = np.arange(len(rows) * self._slots, dtype=np.int32)
        batch = Batch(*arrays, order=every_slot, mask=np.ones(len(every_slot), bool))
        return sharding.place(batch, sharding.batch_shardings(self.mesh))

    def _finish(self, running: "_Running", done: Callable[[int], None]) -> Encoded:
        """Waits for the calls and puts their vectors into the order of the sentences."""
        packing = running.packing
        vectors = np.empty((len(running.cut), self.width), np.float32)
        for rows, embedded in running.calls:
            here = np.flatnonzero((packing.rows >= rows.start) & (packing.rows < rows.stop))
            vectors[here] = np.asarray(embedded)[packing.order[here] - rows.start * self._slots]
            done(len(here))
        return Encoded(vectors, running.cut)


class _Running(NamedTuple):
    """Sentences that the devices work on."""

    packing: Packing
    cut: np.ndarray  # as in Encoded
    calls: list[tuple[range, Array]]  # the rows of each call, and the vectors of all their slots


@partial(jax.jit, static_argnums=(0, 1))
def embed(bank: Bank, mesh: Mesh, params: Params, batch: Batch) -> Array:
    """Sentence embeddings [N, D] float32, without dropout, in the order of `batch.order`."""
    vectors = sum_towers(bank.apply(params, batch).hidden)
    return jax.lax.with_sharding_constraint(vectors, sharding.replicated(mesh))


def _check_finite(model: SavedModel) -> None:
    for path, leaf in jax.tree.leaves_with_path(model.params):
        towers = np.asarray(leaf).reshape(len(leaf), -1)
        bad = np.flatnonzero(~np.isfinite(towers).all(axis=1))
        if len(bad):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UserError(
                f"{model.source}: {name} of tower {bad[0]} has values that are not finite: use "
                "an earlier step, or fetch the weights again."
            )
