"""`benchmarks.race`: what it reports. The process of each contender imports this file."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from benchmarks.race import UNITS, Contender, peak_memory, race
from jtcse_jax.errors import UserError

BROKEN = {"one": Contender(json.loads, {"s": "{"})}


def many_units():
    """Work of many units, which counts the processes that share its folder."""
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).touch()
    return lambda: {UNITS: 1e9, "processes": len(list(folder.iterdir()))}


def test_race_tells_what_a_contender_died_of():
    with pytest.raises(UserError, match="one: JSONDecodeError: Expecting property name"):
        race(BROKEN, rounds=1)


@pytest.mark.usefixtures("forked_contenders")
def test_turns_share_compiled_programs_and_one_that_fails_costs_its_own_row(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    failed = {}
    raced = race(BROKEN | {"two": Contender(many_units)}, rounds=2, turns=2, failed=failed)
    assert list(raced) == ["two"] and failed["one"].startswith("JSONDecodeError")
    outcome = raced["two"]
    assert outcome.numbers["processes"] == 2 and len(outcome.seconds) == 4
    assert max(outcome.seconds) < 1e-9  # a call takes less than a second, and more than this
    assert outcome.peak_of == "host" and outcome.peak_bytes > 10**6


def test_peak_is_of_the_device_where_there_is_one(monkeypatch):
    device = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 7})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert peak_memory() == (7, "device")
    cuda = SimpleNamespace(is_initialized=lambda: True, max_memory_allocated=lambda: 9)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert peak_memory() == (9, "device")
    cuda.is_initialized = lambda: False
    device.memory_stats = lambda: None
    size, of = peak_memory()
    assert size > 10**6 and of == "host"
