"""The order of similar batches, planned from the vectors of the model that a run starts with."""

import contextlib
import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jtcse_jax.data.similar import quantised
from jtcse_jax.data.similar_batches import SimilarBatches
from jtcse_jax.data.tokens import TokenCache
from jtcse_jax.data.views import count_items, items_stride
from jtcse_jax.encoding.bank_encoder import BankEncoder
from jtcse_jax.encoding.progress import progress_bar
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank, Params
from jtcse_jax.runtime import sharding
from jtcse_jax.runtime.distributed import is_primary
from jtcse_jax.training.start import Start

ORDER = "similar.npy"  # in the workdir

_CHUNK = 2**14  # number of sentences whose tokens are in memory at a time

_log = logging.getLogger(__name__)


def find_plan(
    workdir: Path, cache: TokenCache, pairs: str, bank: Bank, start: Start
) -> SimilarBatches:
    """Returns the order of the run in `workdir`; plans it unless the run is resumed.

    The primary process writes it to `similar.npy` in the workdir, from where all processes, and
    every later start, read it. A second copy beside the tokens serves other runs with the same text
    and first tower. All processes call this function.

    Args:
        workdir: folder of the run, shared by all processes.
        cache: the model's tokens.
        pairs: `data.pairs` of the run.
        bank: the shape of the towers.
        start: the start model; its first tower decides which sentences are similar. Its towers are
            None if the run is resumed.

    Raises:
        UserError: the file of a resumed run is missing or damaged, or a new one cannot be written.
    """
    path = workdir / ORDER
    if start.towers is not None:
        if is_primary():
            _plan_once(cache, pairs, bank, start).save(path)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the order is planned")
    return SimilarBatches.load(path, count_items(len(cache), cache.views, pairs))


def _plan_once(cache: TokenCache, pairs: str, bank: Bank, start: Start) -> SimilarBatches:
    """The order from the copy beside the tokens; without a copy, plans it and writes one."""
    count = count_items(len(cache), cache.views, pairs)
    digest = start._replace(towers=_first(start), mlm_head=None).fingerprint()
    copy = cache.folder / f"similar-{count}-{digest[:32]}.npy"
    with contextlib.suppress(UserError):
        return SimilarBatches.load(copy, count)
    _log.info("grouping similar sentences by the vectors of the start model")
    plan = SimilarBatches.plan(item_vectors(cache, pairs, bank, start))
    try:
        plan.save(copy)
    except UserError as error:  # a cache that this user may only read
        _log.warning("other runs will plan this order again: %s", error)
    return plan


def item_vectors(cache: TokenCache, pairs: str, bank: Bank, start: Start) -> np.ndarray:
    """[items, D] int8: the first tower's vector of the first sentence of each item, quantised.

    It runs on the devices of this process. Arguments as in `find_plan` for a new run.
    """
    bank = dataclasses.replace(bank, num_towers=1, mesh=None)
    mesh = sharding.make_mesh(devices=jax.local_devices())
    tower = _first(start)
    tower = jax.device_put(tower, sharding.whole_towers(mesh, tower))
    encoder = BankEncoder(bank, tower, start.tokenizer, cache.max_len, mesh)
    stride = items_stride(cache.views, pairs)
    count = count_items(len(cache), cache.views, pairs)
    vectors = np.empty((count, encoder.width), np.int8)
    with progress_bar(count) as progress:
        for first in range(0, count, _CHUNK):
            items = range(first, min(first + _CHUNK, count))
            tokens = [cache.sentence(stride * item) for item in items]
            found = encoder.encode_tokens(
                tokens, lambda done: progress.advance(progress.task_ids[0], done)
            )
            vectors[items.start : items.stop] = quantised(found)
    return vectors


def _first(start: Start) -> Params:
    """The first tower of a new run, leaves [1, ...]."""
    assert start.towers is not None  # a resumed run has none, and nothing is planned for it
    return jax.tree.map(lambda leaf: leaf[:1], start.towers)
