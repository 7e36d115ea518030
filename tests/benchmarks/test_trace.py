"""`benchmarks.trace`: its tables from events by hand, and what it refuses."""

import gzip

import jax
import jax.numpy as jnp
import pytest

from benchmarks import trace
from benchmarks.program.kinds import OTHER, PRODUCTS
from benchmarks.trace import Event

PROGRAM = """
ENTRY %main (x: bf16[64,32], y: bf16[32,16]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %y = bf16[32,16]{1,0} parameter(1)
  ROOT %dot.5 = bf16[64,16]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
# Two steps of one product and one copy each; the copy runs while the product does.
EVENTS = [
    Event("nvjet_64", "dot.5", 0, 4000),
    Event("memcpy", "", 1000, 1000),
    Event("nvjet_64", "dot.5", 6000, 2000),
    Event("memcpy", "", 9000, 1000),
]


def test_rates_by_hand(tmp_path):
    text = tmp_path / "step.hlo.gz"
    text.write_bytes(gzip.compress(PROGRAM.encode()))
    product, copy = trace.kernels(EVENTS, trace.read_launches(text), steps=2)
    moved, operations = 2 * (64 * 32 + 32 * 16 + 64 * 16), 2 * 64 * 32 * 16
    assert (product["kind"], product["launches"], product["us each"]) == (PRODUCTS, 1, 3)
    assert product["GB/s"] == pytest.approx(moved / 3000)
    assert product["TFLOP/s"] == pytest.approx(operations / 3000 / 1e3)
    assert (product["ms"], product["share"]) == (0.003, "75.0%")
    assert (copy["kind"], copy["GB/s"], copy["ms"]) == (OTHER, None, 0.001)
    kinds = trace.by_kind([product, copy])
    assert [(row["kind"], row["share"]) for row in kinds] == [(PRODUCTS, "75.0%"), (OTHER, "25.0%")]


def test_kernels_are_found_by_their_own_name(tmp_path):
    text = tmp_path / "step.hlo"
    text.write_text(PROGRAM)
    (row,) = trace.kernels([Event("dot_5", "", 0, 10)], trace.read_launches(text), steps=1)
    assert row["kind"] == PRODUCTS and row["result"] == "bf16[64,16]"


def test_overlapping_kernels_are_busy_once():
    summary = trace.summarize(EVENTS, steps=2)
    # 0 to 4, 6 to 8 and 9 to 10 microseconds, of 10.
    assert summary == {"kernels": 2, "ms": 0.005, "busy ms": 0.0035, "busy %": 70}


def test_what_is_not_a_trace_is_one_sentence(refused, tmp_path):
    assert "has no *.xplane.pb" in refused(trace, tmp_path)
    assert "--steps 0: use at least 1" in refused(trace, tmp_path, "--steps", 0)
    for content, message in ((b"HloModule m", "is not the text"), (b"\x1f\x8bx", "is not the")):
        (tmp_path / "m.hlo").write_bytes(content)
        assert message in refused(trace, tmp_path, "--hlo", tmp_path / "m.hlo")
    assert "cannot be read" in refused(trace, tmp_path, "--hlo", tmp_path / "absent")


def test_a_trace_of_a_cpu_is_refused(refused, tmp_path):
    with jax.profiler.trace(str(tmp_path)):
        jax.block_until_ready(jnp.ones(3) + 1)
    assert "its steps ran on a CPU" in refused(trace, tmp_path)
