"""One bank as an encoder: tokenises sentences, packs them into rows, runs the towers, sums them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jtcse_jax import sharding
from jtcse_jax.batch import Batch
from jtcse_jax.data.packing import fill, pack, usual_row_length
from jtcse_jax.data.tokens import truncating_backend
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank, Params, sum_towers
from jtcse_jax.saved_model import SavedModel

PART = 1024  # sentences of a device that are tokenised and packed together
SHORT_ROW = 64  # tokens in the rows of all sentences that fit
FEWEST = 4  # a short row has a slot for this many tokens

# The most tokens in a call of a device. On a CPU little, so that what a layer makes is still in
# the cache for the next.
CALL = {"cpu": 512}
USUAL_CALL = 8192

_Tokens = tuple[Sequence[np.ndarray], np.ndarray]  # ids of n sentences, and [n] what was cut


class Encoded(NamedTuple):
    """What a bank makes of n sentences."""

    vectors: np.ndarray  #: [n, D] float32, the sum of the towers' vectors, not scaled
    cut: np.ndarray  #: [n] bool, True where a sentence was longer than `serving_length`


class Call(NamedTuple):
    """Some rows of one length, and which sentences lie in them."""

    sentences: np.ndarray  #: [m] indices of the sentences
    slots: np.ndarray  #: [m] where their vectors are among those of all slots of the rows
    batch: Batch  #: on the devices


class BankEncoder:
    """A bank of towers, its tokenizer, and the devices it runs on.

    Rows are of 64 tokens. With a longer `serving_length` the sentences that do not fit go into rows
    of that length: attention in a long row costs more, and most sentences are short. A call of the
    model has rows of one length, for each device `call_tokens` tokens, or a quarter, a 16th ..., so
    that no more than four shapes of a length are ever compiled, whatever the sentences.

    Attributes:
      row_lengths: tokens in a row, ascending: one length or two.
      call_tokens: the most tokens of a device in a call, at least one row's.
    """

    def __init__(
        self,
        bank: Bank,
        params: Params,
        tokenizer: Any,
        serving_length: int,
        mesh: Mesh | None = None,
    ):
        """Takes the parameters as they are: host arrays, or already on the devices of `mesh`.

        Args:
          bank: the towers' shape.
          params: leaves [K, ...].
          tokenizer: a fast transformers tokenizer; it is not changed.
          serving_length: longest sentence in tokens, special tokens included.
          mesh: where it runs, rows over its devices; by default the bank's own mesh, or all
            devices of this process.
        Raises:
          UserError: a `serving_length` without room for a token, or a tokenizer without [CLS].
        """
        self.bank = bank
        self.params = params
        self.serving_length = serving_length
        self.mesh = mesh or bank.mesh or sharding.make_mesh(devices=jax.local_devices())
        self._tokenizer = truncating_backend(tokenizer, serving_length)
        if not self._tokenizer.num_special_tokens_to_add(is_pair=False):
            # An empty sentence would have no token, and no sentence a [CLS].
            raise UserError("The tokenizer adds no special tokens: use that of this model.")
        platform = self.mesh.devices.flat[0].platform
        self.row_lengths = (SHORT_ROW,)
        if serving_length > SHORT_ROW:
            self.row_lengths += (usual_row_length(serving_length),)
        self.call_tokens = CALL.get(platform, USUAL_CALL)

    @classmethod
    def of(cls, model: SavedModel) -> "BankEncoder":
        """The encoder of a loaded model, its parameters copied to every device once.

        Raises UserError where a parameter is NaN or infinite, naming it.
        """
        _check_finite(model)
        encoder = cls(model.bank, model.params, model.tokenizer, model.serving_length)
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
        return self._encode(map(self._tokenize, self._parts(sentences)), done)

    def encode_tokens(
        self, tokens: Sequence[np.ndarray], done: Callable[[int], None] = lambda count: None
    ) -> np.ndarray:
        """[n, D] float32, the vectors of sentences given as token ids, special ones included.

        None is longer than `serving_length`. `done` as in `encode`.
        """
        parts = ((part, np.zeros(len(part), bool)) for part in self._parts(tokens))
        return self._encode(parts, done).vectors

    def place(self, sentences: Sequence[str]) -> tuple[np.ndarray, Iterator[Call]]:
        """[n] what was cut, and the calls of the model, made one by one as they are asked for.

        Errors as `encode`.
        """
        tokens, cut = self._tokenize(sentences)
        return cut, self._calls(tokens)

    def _parts(self, sentences: Sequence[Any]) -> Iterator[Sequence[Any]]:
        size = PART * sharding.row_shards(self.mesh)
        return (sentences[start : start + size] for start in range(0, len(sentences), size))

    def _encode(self, parts: Iterable[_Tokens], done: Callable[[int], None]) -> Encoded:
        encoded = [Encoded(np.empty((0, self.width), np.float32), np.empty(0, bool))]
        # One part ahead: the devices work on a part while the next is tokenised and packed.
        for running, _ in pairwise(chain(map(self._start, parts), [None])):
            encoded.append(self._finish(running, done))
        return Encoded(*map(np.concatenate, zip(*encoded, strict=True)))

    def _start(self, part: _Tokens) -> "_Running":
        """Dispatches all calls of the model for some sentences, and waits for none."""
        tokens, cut = part
        calls = self._calls(tokens)
        return _Running(
            cut, [(call, embed(self.bank, self.mesh, self.params, call.batch)) for call in calls]
        )

    def _tokenize(self, sentences: Sequence[str]) -> _Tokens:
        try:
            encoded = self._tokenizer.encode_batch_fast(sentences)
        except TypeError as error:  # half a surrogate pair; the tokenizer does not say where
            raise UserError(f"A sentence is no valid Unicode text ({error}).") from error
        tokens = [np.array(encoding.ids, np.int32) for encoding in encoded]
        return tokens, np.array([bool(encoding.overflowing) for encoding in encoded], bool)

    def _calls(self, tokens: Sequence[np.ndarray]) -> Iterator[Call]:
        """Packs the sentences of each row length separately."""
        all_lengths = np.array([len(ids) for ids in tokens])
        shortest = 1
        for row_length in self.row_lengths:
            chosen = np.flatnonzero((all_lengths >= shortest) & (all_lengths <= row_length))
            some, lengths = [tokens[number] for number in chosen], all_lengths[chosen]
            slots = row_length // max(shortest, FEWEST)
            packing = pack(lengths, row_length, slots)
            for rows in self._rows_of_calls(packing.num_rows, row_length):
                here = np.flatnonzero((packing.rows >= rows.start) & (packing.rows < rows.stop))
                arrays = fill(
                    packing,
                    some.__getitem__,
                    lengths,
                    num_rows=max(rows.stop, packing.num_rows),
                    row_length=row_length,
                    slots=slots,
                    pad_id=self.bank.architecture.pad_token_id,
                    rows=rows,
                )
                every_slot = np.arange(len(rows) * slots, dtype=np.int32)
                batch = Batch(*arrays, order=every_slot, mask=np.ones(len(every_slot), bool))
                placed = sharding.place(batch, sharding.batch_shardings(self.mesh))
                yield Call(chosen[here], packing.order[here] - rows.start * slots, placed)
            shortest = row_length + 1

    def _rows_of_calls(self, num_rows: int, row_length: int) -> list[range]:
        """The rows of each call: of each device the most, or a quarter ... if half are used."""
        shards = sharding.row_shards(self.mesh)
        calls, start = [], 0
        while start < num_rows:
            each = max(1, self.call_tokens // row_length)
            while each > 1 and each * shards > 2 * (num_rows - start):
                each = max(1, each // 4)
            calls.append(range(start, start + each * shards))
            start = calls[-1].stop
        return calls

    def _finish(self, running: "_Running", done: Callable[[int], None]) -> Encoded:
        """Waits for the calls and puts their vectors into the order of the sentences."""
        vectors = np.empty((len(running.cut), self.width), np.float32)
        for call, embedded in running.calls:
            vectors[call.sentences] = np.asarray(embedded)[call.slots]
            done(len(call.sentences))
        return Encoded(vectors, running.cut)


class _Running(NamedTuple):
    """Sentences that the devices work on."""

    cut: np.ndarray  # as in Encoded
    calls: list[tuple[Call, Array]]  # with the vectors of all slots


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
