"""Which rows a process reads, on meshes of stand-in devices of several processes."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jtcse_jax import sharding
from jtcse_jax.errors import UserError


def mesh_of(processes: int, each: int, tower_devices: int):
    """What `data_shard` reads of a mesh."""
    owners = np.repeat(np.arange(processes), each).reshape(tower_devices, -1)
    devices = np.vectorize(lambda owner: SimpleNamespace(process_index=owner))(owners)
    return SimpleNamespace(
        devices=devices, shape={"tower": tower_devices, "data": devices.shape[1]}
    )


@pytest.mark.parametrize(
    ("processes", "each", "tower_devices", "shards"),
    [
        (1, 8, 1, [(0, 1)]),
        (2, 4, 1, [(0, 2), (1, 2)]),
        (4, 1, 1, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (2, 2, 2, [(0, 1), (0, 1)]),  # a tower each: both read every row
        (4, 2, 2, [(0, 2), (1, 2), (0, 2), (1, 2)]),
        (1, 4, 2, [(0, 1)]),
    ],
)
def test_processes_share_the_rows(monkeypatch, processes, each, tower_devices, shards):
    mesh = mesh_of(processes, each, tower_devices)
    for process, shard in enumerate(shards):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert sharding.data_shard(mesh) == shard


def test_process_between_two_towers_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(UserError, match="tower_devices = 2: a process holds devices of several"):
        sharding.data_shard(mesh_of(3, 2, 2))


def test_devices_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="tower_devices = 3 does not divide the 8 devices"):
        sharding.make_mesh(3)
