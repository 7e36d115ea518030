"""Where arrays live: a ("tower", "data") mesh, towers split over one axis, rows over the other."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jtcse_jax.batch import Batch
from jtcse_jax.errors import UserError


def make_mesh(tower_devices: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (by default all of all processes), `tower_devices` groups of them.

    Devices keep their order, process by process, so that each process holds a contiguous block
    of rows. Raises UserError where the devices do not divide into the groups.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % tower_devices:
        raise UserError(
            f"tower_devices = {tower_devices} does not divide the {len(devices)} devices: use 1."
        )
    grid = np.array(devices).reshape(tower_devices, -1)
    # Auto: with the newest default, Explicit, the in-batch product x @ y.T raises.
    return Mesh(grid, ("tower", "data"), axis_types=(AxisType.Auto, AxisType.Auto))


def data_shard(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of `count` equal blocks of a batch's rows this process reads."""
    mine = jax.process_index()
    columns = [
        column
        for column, devices in enumerate(mesh.devices.T)
        if any(device.process_index == mine for device in devices)
    ]
    count, remainder = divmod(mesh.shape["data"], len(columns))
    contiguous = columns == list(range(columns[0], columns[0] + len(columns)))
    if remainder or not contiguous or columns[0] % len(columns):
        raise UserError(
            f"tower_devices = {mesh.shape['tower']}: a process holds devices of several towers "
            "and not the same rows for each: use 1, or processes that divide the towers evenly."
        )
    return columns[0] // len(columns), count


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def tower_shardings(mesh: Mesh, tree):
    """Shardings of a state: arrays have a leading tower axis, scalars do not."""
    split = NamedSharding(mesh, PartitionSpec("tower"))
    return jax.tree.map(lambda leaf: split if np.ndim(leaf) else replicated(mesh), tree)


def place(tree, shardings):
    """A tree of host arrays, whole on every process, as global arrays on the devices."""

    def place_leaf(leaf, sharding):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place_leaf, tree, shardings)


def batch_shardings(mesh: Mesh) -> Batch:
    """Rows over the data axis; the order and the mask, of the whole batch, everywhere."""
    rows = NamedSharding(mesh, PartitionSpec("data"))
    return Batch(rows, rows, rows, rows, order=replicated(mesh), mask=replicated(mesh))


def place_batch(mesh: Mesh, batch: Batch) -> Batch:
    """A batch, of which each process has its own rows alone, as one global batch."""
    one = batch_shardings(mesh)
    shardings = one._replace(teacher=(one,) * len(batch.teacher))
    return jax.tree.map(jax.make_array_from_process_local_data, shardings, batch)
