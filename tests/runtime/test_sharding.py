"""Which rows a process reads, on meshes of stand-in devices of several processes."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jtcse_jax.errors import UserError
from jtcse_jax.runtime import sharding


def mesh_of(processes: int, each: int, tower_devices: int, fsdp_devices: int = 1):
    """What `data_shard` reads of a mesh."""
    owners = np.repeat(np.arange(processes), each).reshape(tower_devices, -1, fsdp_devices)
    devices = np.vectorize(lambda owner: SimpleNamespace(process_index=owner))(owners)
    return SimpleNamespace(
        devices=devices, shape=dict(zip(sharding.AXES, devices.shape, strict=True))
    )


@pytest.mark.parametrize(
    ("processes", "each", "groups", "shards"),
    [
        (1, 8, (1, 1), [(0, 1)]),
        (2, 4, (1, 1), [(0, 2), (1, 2)]),
        (2, 4, (1, 8), [(0, 2), (1, 2)]),  # rows are split over fsdp too
        (4, 1, (1, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (4, 1, (1, 2), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (2, 2, (2, 1), [(0, 1), (0, 1)]),  # a tower each: both read every row
        (4, 2, (2, 1), [(0, 2), (1, 2), (0, 2), (1, 2)]),
        (4, 2, (2, 2), [(0, 2), (1, 2), (0, 2), (1, 2)]),
        (1, 4, (2, 1), [(0, 1)]),
    ],
)
def test_processes_share_the_rows(monkeypatch, processes, each, groups, shards):
    """`groups` are tower_devices and fsdp_devices."""
    mesh = mesh_of(processes, each, *groups)
    for process, shard in enumerate(shards):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert sharding.data_shard(mesh) == shard


def test_process_between_two_towers_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(UserError, match="tower_devices = 2: a process has devices of several"):
        sharding.data_shard(mesh_of(3, 2, 2))


@pytest.mark.parametrize("groups", [(3, 1), (1, 3), (2, 8)])
def test_devices_that_do_not_divide_are_refused(groups):
    with pytest.raises(
        UserError, match="tower_devices = . and fsdp_devices = . do not divide the 8"
    ):
        sharding.make_mesh(*groups)


def test_of_a_matrix_the_longest_axis_that_divides_is_kept_apart():
    mesh = sharding.make_mesh(1, 4)
    shapes = {
        "embedding": (2, 301, 16),
        "kernel": (2, 16, 32),
        "odd": (2, 3, 5),
        "bias": (2, 16),
        "count": (),
    }
    arrays = {name: np.zeros(shape) for name, shape in shapes.items()}
    specs = {name: tuple(one.spec) for name, one in sharding.state_shardings(mesh, arrays).items()}
    assert specs == {
        "embedding": ("tower", None, "fsdp"),  # 301 rows do not divide
        "kernel": ("tower", None, "fsdp"),
        "odd": ("tower",),
        "bias": ("tower",),
        "count": (),
    }
