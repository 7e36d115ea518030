"""How arrays are distributed over devices: a ("tower", "data", "fsdp") mesh.

Towers are split over "tower", the rows of a batch over "data" and "fsdp", parameters and optimizer
state over "tower" and "fsdp". A step gathers the whole parameters, and each device keeps and
updates its share of them (ZeRO, arXiv 1910.02054).
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jtcse_jax.batch import Batch
from jtcse_jax.errors import UserError

PyTree = Any
Device = Any  # jax.Device, a class of a compiled module that has no types
AXES = ("tower", "data", "fsdp")
ROW_AXES = ("data", "fsdp")


def make_mesh(
    tower_devices: int = 1, fsdp_devices: int = 1, *, devices: list[Device] | None = None
) -> Mesh:
    """A mesh over `devices`, by default all of all processes: groups of towers, then of fsdp.

    Devices keep their order, process by process, so that each process holds a contiguous block of
    rows. Raises UserError if the devices do not divide into the groups.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % (tower_devices * fsdp_devices):
        raise UserError(
            f"tower_devices = {tower_devices} and fsdp_devices = {fsdp_devices} do not divide the "
            f"{len(devices)} devices: use 1."
        )
    grid = np.array(devices).reshape(tower_devices, -1, fsdp_devices)
    # Auto axes: with the newest default, Explicit, the in-batch product x @ y.T raises.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def row_shards(mesh: Mesh) -> int:
    """Number of equal blocks that the rows of a batch are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def data_shard(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of `count` equal blocks of a batch's rows this process reads."""
    mine = jax.process_index()
    columns = [
        column
        for column, devices in enumerate(mesh.devices.reshape(len(mesh.devices), -1).T)
        if any(device.process_index == mine for device in devices)
    ]
    count, remainder = divmod(row_shards(mesh), len(columns))
    contiguous = columns == list(range(columns[0], columns[0] + len(columns)))
    if remainder or not contiguous or columns[0] % len(columns):
        raise UserError(
            f"tower_devices = {mesh.shape['tower']}: a process has devices of several towers, but "
            "not the same rows for each: use 1, or processes that divide the towers evenly."
        )
    return columns[0] // len(columns), count


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def whole_towers(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shardings of a bank that runs: each device holds its towers whole.

    Arrays have a leading tower axis, scalars do not.
    """
    split = NamedSharding(mesh, PartitionSpec("tower"))
    return jax.tree.map(lambda leaf: split if np.ndim(leaf) else replicated(mesh), tree)


def state_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shardings of a stored state: as `whole_towers`, with matrices also split over "fsdp".

    A tower's matrix is split along its longest axis that divides evenly. Vectors are too small to
    be worth a transfer.
    """
    parts = mesh.shape["fsdp"]

    def kept(leaf: Any, whole: NamedSharding) -> NamedSharding:
        axes = [axis for axis in range(1, np.ndim(leaf)) if leaf.shape[axis] % parts == 0]
        if parts == 1 or np.ndim(leaf) < 3 or not axes:
            return whole
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec("tower", *[None] * (longest - 1), "fsdp"))

    return jax.tree.map(kept, tree, whole_towers(mesh, tree))


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Places a tree of host arrays, whole on every process, as global arrays on the devices."""

    def place_leaf(leaf, sharding):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place_leaf, tree, shardings)


def abstract(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shapes and dtypes of a tree of arrays that `place` would place, as `jax.ShapeDtypeStruct`."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings,
    )


def batch_shardings(mesh: Mesh, *, micro_batches: bool = False) -> Batch:
    """Rows are split over the devices; every device has the whole batch's order and mask."""
    leading = (None,) if micro_batches else ()
    rows = NamedSharding(mesh, PartitionSpec(*leading, ROW_AXES))
    return Batch(rows, rows, rows, rows, order=replicated(mesh), mask=replicated(mesh))


def place_batch(mesh: Mesh, batch: Batch) -> Batch:
    """Makes one global batch of the processes' parts; each process passes only its own rows."""
    one = batch_shardings(mesh, micro_batches=batch.has_micro_batches)
    shardings = one._replace(teacher=(one,) * len(batch.teacher))
    return jax.tree.map(jax.make_array_from_process_local_data, shardings, batch)


def split_sentences(mesh: Mesh | None, vectors: PyTree) -> PyTree:
    """Inside a jitted step: splits vectors [K, N, ...] over the devices along N, if that divides.

    A loss over all pairs of sentences is then computed once; each device takes a share of the
    anchors.
    """
    if mesh is None or row_shards(mesh) == 1:
        return vectors
    split = NamedSharding(mesh, PartitionSpec("tower", ROW_AXES))

    def constrain(leaf: jax.Array) -> jax.Array:
        divides = leaf.shape[1] % row_shards(mesh) == 0
        return jax.lax.with_sharding_constraint(leaf, split) if divides else leaf

    return jax.tree.map(constrain, vectors)
