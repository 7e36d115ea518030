"""Encodes sentences with one bank: tokenises them, packs them into rows, and sums the towers."""

import dataclasses
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jtcse_jax.batch import Batch
from jtcse_jax.data.packing import fill, pack, usual_row_length
from jtcse_jax.data.tokens import truncating_backend
from jtcse_jax.data.unknown import UnknownCounter
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank, Params, sum_towers
from jtcse_jax.runtime import sharding
from jtcse_jax.runtime.ahead import map_ahead
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.store.serving import Serving

PART = 1024  # sentences per device that are tokenised and packed together
AHEAD = 2  # parts that are prepared at once: while one is tokenised, in Rust, another is packed
SHORT_ROW = 64  # tokens in a row of short sentences
FEWEST = 4  # a short row has one slot for this many tokens
USUAL_SENTENCES = 4  # in a short row: more only if sentences have fewer than 16 tokens on average

# Largest number of tokens per device in one call of the model. It is small on a CPU, so that the
# output of a layer is still in the cache when the next layer reads it.
CALL = {"cpu": 512}
USUAL_CALL = 8192


class Encoded(NamedTuple):
    """The output of a bank for n sentences."""

    vectors: np.ndarray  #: [n, D] float32, the sum of the towers' vectors, not scaled
    cut: np.ndarray  #: [n] bool, True if a sentence was longer than `serving_length`
    unknown: np.ndarray  #: [n] int64, characters that the tokenizer does not know


class Call(NamedTuple):
    """Some rows of one length, with the numbers of the sentences in them."""

    sentences: np.ndarray  #: [m] indices of the sentences
    batch: Batch  #: on the devices; `order` has the m sentences first, `mask` is True for them


class Placed(NamedTuple):
    """Sentences that are ready for the model."""

    cut: np.ndarray  #: as in `Encoded`
    unknown: np.ndarray  #: as in `Encoded`
    calls: list[Call]


class BankEncoder:
    """A bank of towers, its tokenizer, and the devices it runs on.

    Rows have 64 tokens. If `serving_length` is longer, sentences that do not fit go into rows of
    that length: attention in a long row costs more, and most sentences are short. A call of the
    model has rows of one length, with `call_tokens` tokens per device, or a quarter of them, a
    16th ... It returns a vector for each slot, or, if it is a full call with at most
    `USUAL_SENTENCES` per row, that many. So at most five shapes per row length are compiled, for
    any sentences.

    Attributes:
      row_lengths: tokens in a row, ascending: one length or two.
      call_tokens: largest number of tokens per device in a call; at least one row's.
    """

    def __init__(
        self,
        bank: Bank,
        params: Params,
        tokenizer: Any,
        serving_length: int,
        mesh: Mesh | None = None,
        serving: Serving | None = None,
    ):
        """Stores the parameters unchanged: host arrays, or arrays on the devices of `mesh`.

        Args:
          bank: the towers' shape.
          params: leaves [K, ...].
          tokenizer: a fast transformers tokenizer; this class does not change it.
          serving_length: longest sentence in tokens, special tokens included.
          mesh: the devices; rows are split over them. By default the bank's own mesh, or all
            devices of this process.
          serving: the prompts; by default none.
        Raises:
          UserError: `serving_length` has no room for a token, or the tokenizer adds no [CLS].
        """
        self.bank = bank
        self.params = params
        self.serving = serving or Serving()
        self.mesh = mesh or bank.mesh or sharding.make_mesh(devices=jax.local_devices())
        self._special = frozenset(tokenizer.all_special_ids)
        self._untruncated = tokenizer
        self.serving_length = serving_length
        if not self._tokenizer.num_special_tokens_to_add(is_pair=False):
            # An empty sentence would have no token, and no sentence would have a [CLS].
            raise UserError("The tokenizer adds no special tokens: use this model's tokenizer.")
        platform = self.mesh.devices.flat[0].platform
        self.call_tokens = CALL.get(platform, USUAL_CALL)

    @classmethod
    def of(cls, model: SavedModel) -> "BankEncoder":
        """Makes the encoder of a loaded model; copies the parameters once to every device.

        Raises UserError, with the parameter's name, if a parameter is NaN or infinite.
        """
        _check_finite(model)
        encoder = cls(
            model.bank,
            model.params,
            model.tokenizer,
            model.serving_length,
            serving=model.serving,
        )
        shardings = sharding.whole_towers(encoder.mesh, model.params)
        encoder.params = jax.device_put(model.params, shardings)
        return encoder

    @property
    def serving_length(self) -> int:
        """The longest sentence in tokens, special tokens included; longer ones are cut.

        Setting it raises UserError unless the tokenizer and the model's positions allow it.
        """
        return self._serving_length

    @serving_length.setter
    def serving_length(self, length: int) -> None:
        longest = self.bank.architecture.longest_sentence
        if type(length) is not int or not 1 <= length <= longest:
            raise UserError(
                f"serving length = {reprlib.repr(length)}: choose a whole number up to {longest}, "
                "the positions of the model."
            )
        self._tokenizer = truncating_backend(self._untruncated, length)
        self._unknown = UnknownCounter(self._tokenizer)
        self._serving_length = length
        self.row_lengths = (SHORT_ROW,)
        if length > SHORT_ROW:
            self.row_lengths += (usual_row_length(length),)

    @property
    def width(self) -> int:
        """Size of a vector (D)."""
        return self.bank.architecture.hidden_size

    def encode(
        self,
        sentences: Sequence[str],
        done: Callable[[int], None] = lambda count: None,
        prompt: str | None = None,
    ) -> Encoded:
        """Encodes sentences, in order; the empty sentence "" is allowed.

        After each call of the model, `done` gets the number of sentences it encoded. `prompt` is
        put before each sentence; by default it is the model's own. Raises UserError if a string is
        not valid Unicode.
        """
        prompt = self.serving.prompt(prompt)
        skipped = 0 if self.serving.include_prompt or not prompt else self._prompt_length(prompt)
        bank = dataclasses.replace(self.bank, skipped=skipped)
        return self._encode(partial(self.place, prompt=prompt), sentences, done, bank)

    def encode_tokens(
        self, tokens: Sequence[np.ndarray], done: Callable[[int], None] = lambda count: None
    ) -> np.ndarray:
        """Encodes sentences given as token ids, special tokens included; [n, D] float32.

        No sentence may be longer than `serving_length`. `done` as in `encode`.
        """

        def place_tokens(part: Sequence[np.ndarray]) -> Placed:
            nothing = np.zeros(len(part), np.int64)
            return Placed(nothing.astype(bool), nothing, list(self._calls(part)))

        return self._encode(place_tokens, tokens, done, self.bank).vectors

    def place(self, sentences: Sequence[str], prompt: str = "") -> Placed:
        """Tokenises and packs sentences. Raises the errors of `encode`."""
        try:
            encoded = self._tokenizer.encode_batch_fast([prompt + text for text in sentences])
        except TypeError as error:  # half a surrogate pair; the tokenizer does not say which string
            raise UserError(
                f"A sentence is not valid Unicode text ({error}); if it came from a console "
                "that is not UTF-8, set PYTHONUTF8=1."
            ) from error
        ids = [encoding.ids for encoding in encoded]
        cut = np.array([bool(encoding.overflowing) for encoding in encoded], bool)
        unknown = self._unknown.count(sentences, ids)
        return Placed(cut, unknown, list(self._calls([np.array(one, np.int32) for one in ids])))

    def _prompt_length(self, prompt: str) -> int:
        """Tokens of a prompt without the last special one, counted as sentence-transformers does.

        They may be one more than the prompt has inside a text, such as the space at its end.
        """
        ids = self._tokenizer.encode(prompt).ids
        return len(ids) - (ids[-1] in self._special)

    def _encode(
        self,
        place: Callable[[Sequence[Any]], Placed],
        sentences: Sequence[Any],
        done: Callable[[int], None],
        bank: Bank,
    ) -> Encoded:
        size = PART * sharding.row_shards(self.mesh)
        parts = (sentences[start : start + size] for start in range(0, len(sentences), size))
        vectors = np.empty((0, self.width), np.float32)
        encoded = [Encoded(vectors, np.empty(0, bool), np.empty(0, np.int64))]
        with closing(map_ahead(place, parts, AHEAD)) as placed:
            # The calls of a part are dispatched before the results of an earlier one are awaited.
            started = (self._start(bank, part) for part in placed)
            for running, _ in pairwise(chain(started, [None])):
                assert running is not None  # None is the last, and begins no pair
                encoded.append(self._finish(running, done))
        return Encoded(*map(np.concatenate, zip(*encoded, strict=True)))

    def _start(self, bank: Bank, part: Placed) -> "_Running":
        """Dispatches all calls of the model for some sentences, without waiting for the results."""
        calls = [(call, embed(bank, self.mesh, self.params, call.batch)) for call in part.calls]
        return _Running(part.cut, part.unknown, calls)

    def _calls(self, tokens: Sequence[np.ndarray]) -> Iterator[Call]:
        """Packs the sentences of each row length separately."""
        all_lengths = np.array([len(ids) for ids in tokens])
        shortest = 1
        for row_length in self.row_lengths:
            chosen = np.flatnonzero((all_lengths >= shortest) & (all_lengths <= row_length))
            some, lengths = [tokens[number] for number in chosen.tolist()], all_lengths[chosen]
            slots = row_length // max(shortest, FEWEST)
            packing = pack(lengths, row_length, slots)
            for rows in self._rows_of_calls(packing.num_rows, row_length):
                here = np.flatnonzero((packing.rows >= rows.start) & (packing.rows < rows.stop))
                arrays = fill(
                    packing,
                    some.__getitem__,
                    num_rows=max(rows.stop, packing.num_rows),
                    pad_id=self.bank.architecture.pad_token_id,
                    rows=rows,
                )
                order = np.zeros(self._num_vectors(len(here), rows, row_length, slots), np.int32)
                order[: len(here)] = packing.order[here] - rows.start * slots
                batch = Batch(*arrays, order, mask=np.arange(len(order)) < len(here))
                placed = sharding.place(batch, sharding.batch_shardings(self.mesh))
                yield Call(chosen[here], placed)
            shortest = row_length + 1

    def _num_vectors(self, sentences: int, rows: range, row_length: int, slots: int) -> int:
        """Number of vectors that a call returns, at least `sentences`."""
        full = len(rows) == self._most_rows(row_length)
        few = len(rows) * min(USUAL_SENTENCES, slots)
        return few if full and sentences <= few else len(rows) * slots

    def _most_rows(self, row_length: int) -> int:
        """Rows of a full call, on all devices."""
        return max(1, self.call_tokens // row_length) * sharding.row_shards(self.mesh)

    def _rows_of_calls(self, num_rows: int, row_length: int) -> list[range]:
        """Rows of each call: `call_tokens` per device, or a quarter, a 16th ... if few are left."""
        shards = sharding.row_shards(self.mesh)
        calls, start = [], 0
        while start < num_rows:
            each = self._most_rows(row_length) // shards
            while each > 1 and each * shards > 2 * (num_rows - start):
                each = max(1, each // 4)
            calls.append(range(start, start + each * shards))
            start = calls[-1].stop
        return calls

    def _finish(self, running: "_Running", done: Callable[[int], None]) -> Encoded:
        """Waits for the calls and puts their vectors into the order of the sentences."""
        vectors = np.empty((len(running.cut), self.width), np.float32)
        for call, embedded in running.calls:
            vectors[call.sentences] = np.asarray(embedded)[: len(call.sentences)]
            done(len(call.sentences))
        return Encoded(vectors, running.cut, running.unknown)


class _Running(NamedTuple):
    """Sentences that the devices are encoding."""

    cut: np.ndarray  # as in Encoded
    unknown: np.ndarray  # as in Encoded
    calls: list[tuple[Call, Array]]  # each call with its vectors


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
                "an earlier step, or download the weights again."
            )
