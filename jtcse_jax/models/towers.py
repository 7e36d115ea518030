"""A bank of K towers: K encoders of one shape as one stacked pytree, run as one.

K = 1 is SimCSE or a distilled student, K = 2 is JTCSE, K > 2 is a ring. The encoder of the family
(`encoders.py`) is the code of one tower. Here its parameters get a leading axis K, named "tower"
(by `vmap` if towers share devices, by `shard_map` if each has its own). Packed rows are gathered
into one vector per sentence, in the batch's order.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from jtcse_jax.architecture import Architecture, Cross, Pooling
from jtcse_jax.batch import Batch
from jtcse_jax.config import ModelConfig
from jtcse_jax.models.bert import Encoder
from jtcse_jax.models.encoders import encoder_class
from jtcse_jax.models.parts import INITIAL_STDDEV, TOWER_AXIS
from jtcse_jax.models.pooling import pool

Params = dict[str, Any]  # nested dictionary of arrays; in a bank each has a leading axis K


class TowerOutputs(NamedTuple):
    """One vector per sentence view and tower, float32."""

    hidden: Array  #: [K, 2B, D] h: last hidden states of the sentence, pooled
    pooled: Array  #: [K, 2B, D] p: pooler output of h
    crossed: Array  #: [K, 2B, D] c: like h, for the crossed stream; h itself if nothing crosses


class LayerStates(NamedTuple):
    """The states of every layer of every tower for packed rows, without dropout."""

    hidden: Array  #: [K, L + 1, R, P, D] after the embeddings and after each layer
    attention: Array  #: [K, L, R, H, P, P] float32, from each query (axis -2) to each key (-1)


@dataclass(frozen=True)
class Bank:
    """What K towers have in common; their parameters are passed in."""

    architecture: Architecture
    num_towers: int
    pooling: Pooling = "cls"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    compute_dtype: str = "float32"
    cross: Cross = Cross("off")
    mesh: Mesh | None = None
    skipped: int = 0  #: tokens at a sentence's start that pooling leaves out: those of a prompt

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        architecture: Architecture,
        mesh: Mesh | None = None,
        *,
        pooling: Pooling = "cls",
    ) -> "Bank":
        """The bank that a run trains; `pooling` comes from the config or the start model."""
        return cls(
            architecture=architecture,
            num_towers=len(config.towers),
            pooling=pooling,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            compute_dtype=config.compute_dtype,
            cross=config.cross,
            mesh=mesh,
        )

    def init(self, seed: int) -> Params:
        """New parameters of K different towers, numpy float32 leaves [K, ...].

        Kernels and embeddings are normal(0, 0.02), biases 0, LayerNorm scales 1, as in BERT. They
        are drawn on the host: the same on every machine, and nothing to compile.
        """
        rng = np.random.default_rng(seed)

        def draw(path, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
            if path[-1].key in ("kernel", "embedding"):
                return INITIAL_STDDEV * rng.standard_normal(leaf.shape, leaf.dtype)
            return np.full(leaf.shape, path[-1].key == "scale", leaf.dtype)

        return jax.tree.map_with_path(draw, self.abstract())

    def abstract(self) -> Params:
        """Shapes and dtypes of the parameters, as `jax.ShapeDtypeStruct`."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((self.num_towers, *leaf.shape), leaf.dtype),
            tower_shapes(self.architecture),
        )

    def apply(
        self, params: Params, batch: Batch, *, key: Array | None = None, crossed: bool = False
    ) -> TowerOutputs:
        """Sentence vectors of every tower, in the batch's order.

        Args:
          params: as from `init`.
          batch: packed rows, see `Batch`.
          key: dropout key of this step; None means no dropout. Each tower draws its own masks.
          crossed: also run the crossed streams; otherwise `crossed` is `hidden`.
        """
        cross = self.cross if crossed else None

        def tower(params: Params, rows: Batch, key: Array | None) -> TowerOutputs:
            key = _tower_key(key)
            encoder = self._merge(params)
            main, crossed = encoder(
                rows.tokens,
                rows.positions,
                rows.segments,
                key=key,
                cross=cross,
                places=rows.cls_positions if self._only_cls else None,
            )
            hidden = self._sentence_vectors(main, rows)
            return TowerOutputs(
                hidden=hidden,
                pooled=encoder.pool(hidden),
                crossed=hidden if crossed is main else self._sentence_vectors(crossed, rows),
            )

        return self._map_towers(tower)(params, batch, key)

    def hidden_states(
        self,
        params: Params,
        batch: Batch,
        *,
        key: Array | None = None,
        places: Array | None = None,
    ) -> Array:
        """Last hidden states [K, R, P, D] of every tower's plain stream, in the compute dtype.

        With `places` [R, M] only those positions of the rows, [K, R, M, D]. Other args as in
        `apply`.
        """

        def tower(params: Params, rows: Batch, key: Array | None) -> Array:
            key = _tower_key(key)
            encoder = self._merge(params)
            return encoder(rows.tokens, rows.positions, rows.segments, key=key, places=places)[0]

        return self._map_towers(tower)(params, batch, key)

    def layer_states(self, params: Params, batch: Batch, *, crossed: bool = False) -> LayerStates:
        """All hidden states and attention of the plain streams, or of the crossed ones.

        Attention is from a tower's own queries to its own keys, before any exchange. For
        inspection, not for training: everything is kept in memory. Args as in `apply`.
        """
        cross = self.cross if crossed else None

        def tower(params: Params, rows: Batch, key: None) -> LayerStates:
            encoder = self._merge(params)
            streams = encoder.states(rows.tokens, rows.positions, rows.segments, cross=cross)
            hidden = [stream for _, stream in streams]
            allowed = encoder.allowed(rows.positions, rows.segments)
            attention = [
                layer.probabilities(x, allowed(number))
                for number, (layer, x) in enumerate(
                    zip(encoder.layers, hidden[:-1], strict=True), 1
                )
            ]
            return LayerStates(jnp.stack(hidden), jnp.stack(attention))

        return self._map_towers(tower)(params, batch, None)

    def _map_towers(self, tower: Callable) -> Callable:
        """`tower` mapped over the leading axis of its first argument, an axis named "tower"."""
        if self.mesh is None or self.mesh.shape[TOWER_AXIS] == 1:
            return jax.vmap(tower, in_axes=(0, None, None), axis_name=TOWER_AXIS)

        def on_own_devices(params, rows, key):
            outputs = tower(jax.tree.map(lambda leaf: leaf[0], params), rows, key)
            return jax.tree.map(lambda leaf: leaf[None], outputs)

        # Manual only over "tower": one collective-permute per crossed layer and direction;
        # sharding the vmapped axis would gather all values.
        split, shared = PartitionSpec(TOWER_AXIS), PartitionSpec()
        return jax.shard_map(
            on_own_devices,
            mesh=self.mesh,
            axis_names={TOWER_AXIS},
            in_specs=(split, shared, shared),
            out_specs=split,
            check_vma=False,
        )

    def _sentence_vectors(self, hidden: Array, rows: Batch) -> Array:
        """[2B, D] float32 in the batch's order, from states [R, P, D], or of [CLS], [R, C, D]."""
        slots = hidden
        if not self._only_cls:
            count = rows.cls_positions.shape[1]
            slots = pool(self.pooling, hidden, rows.segments, rows.positions, count, self.skipped)
        return slots.reshape(-1, hidden.shape[-1])[rows.order].astype(jnp.float32)

    @property
    def _only_cls(self) -> bool:
        """Whether the last layer's states are needed at [CLS] only."""
        return self.pooling == "cls" and not self.skipped

    def _merge(self, params: Params) -> Encoder:
        graph, state = _structure(
            self.architecture, self.dropout, self.attention_dropout, self.compute_dtype
        )
        state = jax.tree.map(lambda leaf: leaf, state)  # a copy, because it is filled in place
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)


def _tower_key(key: Array | None) -> Array | None:
    """The tower's own key: one key under vmap would silently give all towers the same masks."""
    return None if key is None else jax.random.fold_in(key, jax.lax.axis_index(TOWER_AXIS))


@lru_cache(maxsize=16)  # equal for equal banks, and tracing takes half a second
def _structure(
    architecture: Architecture, dropout: float, attention_dropout: float, dtype: str
) -> tuple[nnx.GraphDef, nnx.State]:
    """One tower's structure, and shapes in place of its parameters."""
    rates = {"dropout": dropout, "attention_dropout": attention_dropout}
    # Layers after the first are equal: tracing one and copying it takes a tenth of the time.
    few = dataclasses.replace(architecture, num_layers=min(architecture.num_layers, 2))
    kind = encoder_class(architecture)
    encoder = nnx.eval_shape(lambda: kind(few, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0), **rates))
    missing = architecture.num_layers - few.num_layers
    copies = (nnx.clone(encoder.layers[-1]) for _ in range(missing))
    encoder.layers = nnx.List([*encoder.layers, *copies])
    return nnx.split(encoder)


def tower_shapes(architecture: Architecture) -> Params:
    """Shapes and dtypes of one tower's parameters, as `jax.ShapeDtypeStruct`."""
    _, state = _structure(architecture, 0.0, 0.0, "float32")
    return nnx.to_pure_dict(nnx.filter_state(state, nnx.Param))


def sum_towers(hidden: Array) -> Array:
    """The sentence embedding [N, D] of a bank: the sum of its towers' [K, N, D]."""
    return hidden.sum(axis=0)


def neighbours(num_towers: int) -> list[tuple[int, int]]:
    """Pairs of towers that a loss compares: (0, 1) for two towers, a ring for more."""
    if num_towers == 2:
        return [(0, 1)]
    return [(tower, (tower + 1) % num_towers) for tower in range(num_towers)]


def stack(towers: list[Params]) -> Params:
    """A bank's parameters from those of its towers."""
    # On the host: jnp.stack would be compiled for every shape.
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *towers)


def unstack(params: Params) -> list[Params]:
    """The towers' parameters of a bank."""
    leaves, structure = jax.tree.flatten(params)
    return [jax.tree.unflatten(structure, tower) for tower in zip(*leaves, strict=True)]
