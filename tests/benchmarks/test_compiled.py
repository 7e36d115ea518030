"""`benchmarks.compiled`: its figures, its command, and the programs of the real compilers."""

import dataclasses
import json

import jax
import pytest

from benchmarks import compiled
from benchmarks.program import hlo, tables
from benchmarks.program.counts import Counted, Launch, Transfer, count
from benchmarks.program.figures import by_kind, counts, estimate, floor
from benchmarks.program.kinds import (
    ATTENTION,
    GELU,
    NORM,
    OPTIMIZER,
    OTHER,
    PRODUCTS,
)
from benchmarks.program.steps import Case, Lowered, lower_step, packed_batch
from benchmarks.program.targets import Rates, Target, find_target, is_installed
from benchmarks.race import Contender, race
from jtcse_jax.architecture import Architecture
from jtcse_jax.batch import Batch
from jtcse_jax.errors import UserError
from jtcse_jax.models.layer_stacks import stack_layers
from jtcse_jax.models.towers import Bank

LAUNCHES = [
    Launch("a", "fusion", GELU, 2, 3 * 10**6, 4 * 10**6, 0.0, "", ""),
    Launch("b", "dot", PRODUCTS, 1, 100, 100, 5e9, "", ""),
]
RATES = Rates(bandwidth=1e9, bfloat16=1e12, float32=1e11, launch=1e-3, basis="made up")


def test_estimate_and_totals_by_hand():
    # Twice 3 ms of bytes, once 5 ms of products, and three starts of 1 ms.
    assert estimate(LAUNCHES, RATES, "bfloat16") == pytest.approx(6e-3 + 5e-3 + 3e-3)
    assert estimate(LAUNCHES, RATES, "float32") == pytest.approx(6e-3 + 50e-3 + 3e-3)
    total = counts(Counted(LAUNCHES, [Transfer("all-gather", ("f32[2]",), 8, 3, "")], 0))
    assert (total["launches"], total["small_launches"]) == (3, 1)
    assert (total["bytes"], total["upper_bytes"]) == (6 * 10**6 + 100, 8 * 10**6 + 100)
    assert (total["collective_count"], total["collective_bytes"]) == (3, 24)
    assert by_kind(LAUNCHES)[GELU] == {
        **{"launches": 2, "bytes": 6 * 10**6, "upper_bytes": 8 * 10**6},
        "flops": 0.0,
    }


def test_floor_by_hand():
    target = Target("made up", "cpu", jax.devices()[:4], RATES)
    lowered = Lowered(None, flops=8e12, parameters=10**6, rows=1, tokens=1)
    case = Case(Architecture(), tower_devices=2, fsdp_devices=2)
    # 8 TFLOP on four devices of 1 TFLOP/s; each updates a quarter of the parameters.
    expected = 2 + 32 * 10**6 / 4 / 1e9
    assert floor("step", case, target, lowered) == pytest.approx(expected)
    assert floor("encoder", case, target, lowered) == pytest.approx(2 + 4 * 10**6 / 1e9)


# Wide enough that hidden states, sentence vectors and parameters have different sizes.
SMALL = Architecture(
    vocab_size=2000, hidden_size=256, num_layers=2, num_heads=4, intermediate_size=1024
)
CROSSED = 1  # of the two layers


def test_rows_are_as_many_as_asked_for():
    case = Case(SMALL, batch=8, rows=30)
    batch = packed_batch(case, columns=8)
    assert batch.tokens.shape == (32, 64) and batch.order.shape == (16,)
    parts = packed_batch(Case(SMALL, batch=8, micro_batch=4), columns=2)
    assert parts.has_micro_batches and parts.order.shape == (2, 8)
    with pytest.raises(UserError, match="--rows 1: 8 sentences need"):
        packed_batch(Case(SMALL, batch=8, rows=1), columns=1)


@pytest.fixture
def small_on_cpu(monkeypatch):
    """The command on the CPU's own compiler, for models of one narrow layer."""

    def find(name: str, count: int | None) -> Target:
        return Target(name, "cpu", jax.devices()[: count or 1], RATES)

    narrow = Architecture(
        vocab_size=200, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64
    )
    monkeypatch.setattr(compiled, "find_target", find)
    monkeypatch.setattr(compiled, "SIZES", {"base": narrow})


def step(objective):
    what = ("--objective", objective, "--program", "step", "--batch", 4)
    return ("--target", "h100", "--dtype", "float32", *what)


@pytest.mark.slow
@pytest.mark.usefixtures("small_on_cpu", "quick_compilation")
@pytest.mark.parametrize("objective", ["simcse", "tncse", "jtcse", "distill", "mlm"])
def test_command_compiles_every_objective(objective, command, tmp_path, capsys):
    output = tmp_path / "one.json"
    command(compiled, *step(objective), "--output", output, "--hlo", tmp_path)
    result = json.loads(output.read_text())
    program = result["programs"]["step"]
    # Rows are not quite full, and the compiler multiplies fillers too.
    assert program["product_flops"] > 0.99 * program["real_product_flops"] > 0
    assert program["bytes"] <= program["upper_bytes"]
    assert sum(row["launches"] for row in program["kinds"].values()) == program["launches"]
    assert program["kinds"][OPTIMIZER]["launches"] > 0 and program["temporary_bytes"] > 0
    assert "Assumed: 1 GB/s, 0 TFLOP/s of float32" in capsys.readouterr().out
    assert (tmp_path / "step.hlo.gz").stat().st_size > 0


@pytest.mark.usefixtures("small_on_cpu", "quick_compilation")
def test_programs_are_compared(command, tmp_path, capsys):
    output, again = tmp_path / "one.json", tmp_path / "two.json"
    command(compiled, *step("simcse"), "--output", output)
    micro = ("--micro-batch", 2, "--compare", output, "--output", again)
    command(compiled, *step("simcse"), *micro)
    printed = capsys.readouterr().out
    assert "step: change" in printed and "%" in printed
    program, parts = (json.loads(path.read_text())["programs"]["step"] for path in (output, again))
    assert parts["rows"] >= program["rows"] and parts["loops_of_unknown_length"] == 0


@pytest.mark.usefixtures("small_on_cpu", "quick_compilation")
def test_command_compiles_the_encoder(command, tmp_path):
    output = tmp_path / "one.json"
    program = ("--program", "encoder", "--devices", 2, "--towers", 2)
    command(compiled, "--target", "h100", *program, "--top", 3, "--output", output)
    result = json.loads(output.read_text())["programs"]["encoder"]
    assert result["kinds"][OPTIMIZER]["launches"] == 0 and result["rows"] == 256
    # On each of two devices: attention over whole rows, and the last layer for all slots of a row.
    half = result["real_product_flops"] / 2
    assert half < result["product_flops"] < 1.6 * half


def test_difference_of_two_runs():
    kinds = {GELU: {"launches": 4, "bytes": 8e9}}
    before = {"launches": 10, "bytes": 4e9, "code_bytes": None, "kinds": kinds}
    now = before | {"launches": 5, "code_bytes": 7, "kinds": {GELU: {"launches": 2, "bytes": 2e9}}}
    rows = {row["figure"]: row for row in tables.differences(before, now)}
    assert rows["launches"] == {
        **{"figure": "launches", "before": 10, "now": 5},
        "change": "-50.0%",
    }
    assert rows["moved, GB"]["change"] == "+0.0%" and "generated code, MB" not in rows
    assert (rows["GELU, GB"]["before"], rows["GELU, GB"]["now"]) == (8, 2)


def test_bad_input_is_one_sentence(refused, monkeypatch, tmp_path):
    absent = tmp_path / "absent"
    for options, message in (
        (("--target", "h300"), "--target h300 is unknown: choose one of h100"),
        (("--target", "v5e"), "--target v5e is unknown"),
        (("--batch", 4, "--micro-batch", 3), "data.micro_batch = 3 does not divide"),
        (("--objective", "jtcse", "--towers", 1), "needs two towers or more"),
        (("--max-len", 600), "--max-len 600: the model reads at most 512 tokens"),
        (("--compare", absent), f"--compare {absent} cannot be read"),
        (("--hlo", absent), f"--hlo {absent}"),
    ):
        with_target = options if "--target" in options else ("--target", "h100", *options)
        assert message in refused(compiled, *with_target)
    broken = tmp_path / "broken.json"
    for text in ("{", "[]", '{"programs": 3}', '{"programs": {"step": {"kinds": 1}}}'):
        broken.write_text(text)
        assert "not the JSON" in refused(compiled, "--target", "h100", "--compare", broken)


def test_an_absent_compiler_names_what_to_install(refused, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for target, compiler in (("h100", "CUDA"), ("v5e:2x4", "TPU")):
        message = refused(compiled, "--target", target)
        assert f"--target {target} needs the {compiler} compiler" in message
        assert "pip install -r requirements-aot.txt" in message


def test_a_program_that_does_not_compile_is_one_sentence(monkeypatch):
    class Refused:
        lowered = property(lambda self: self)

        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 20G of 16G.\nmore")

    monkeypatch.setitem(compiled.PROGRAMS, "step", lambda case, devices: Refused())
    target = Target("v5e:1x1", "tpu", [], RATES)
    with pytest.raises(UserError, match="step does not compile for v5e:1x1: RESOURCE.* of 16G.$"):
        compiled.compile_program("step", Case(SMALL), target)


# ---------------------------------------------------------------- the real compilers
ABSENT = "its compiler is not installed (requirements-aot.txt)"
needs_tpu = pytest.mark.skipif(not is_installed("tpu"), reason=ABSENT)
needs_cuda = pytest.mark.skipif(not is_installed("cuda"), reason=ABSENT)
STEP = Case(SMALL, objective="jtcse", batch=32)


# The options of these tests for CPU programs would change the compilers' own.
CLEAN = {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"}


def program_for(target: str, case: Case) -> Counted:
    """What the compiled step does; it is compiled in a process of its own."""
    contender = Contender(compile_step, {"target": target, "case": case}, CLEAN)
    return race({target: contender}, rounds=1, warmup=0, turns=1)[target].numbers["counted"]


def compile_step(target: str, case: Case):
    """The work of that process."""

    def work() -> dict[str, Counted]:
        lowered = lower_step(case, find_target(target).devices).lowered
        return {"counted": count(hlo.parse(lowered.compile().as_text()))}

    return work


@pytest.mark.slow
@needs_tpu
@pytest.mark.parametrize("towers, fsdp", [(1, 1), (2, 1), (1, 2)], ids=["data", "tower", "fsdp"])
def test_tpu_moves_no_hidden_states(towers, fsdp):
    case = dataclasses.replace(STEP, tower_devices=towers, fsdp_devices=fsdp)
    found = program_for("v5e:2x4", case)
    assert found.unknown_loops == 0
    assert_expected_transfers(found.transfers, packed_batch(case, 8 // towers), towers, fsdp)


def assert_expected_transfers(
    moved: list[Transfer], batch: Batch, towers: int, fsdp: int, devices: int = 8
) -> None:
    """Sentence vectors, the values that cross, gradients, and over fsdp the parameters."""
    shards = devices // towers
    vectors = batch.order.size * SMALL.hidden_size
    all_vectors = vectors * (2 // towers)  # of the towers that share a device
    hidden = batch.tokens.size // shards * SMALL.hidden_size  # of one device and tower
    assert all_vectors < hidden
    single = Bank(SMALL, 2).abstract()
    leaves = jax.tree.leaves((single, jax.eval_shape(stack_layers, single)))
    parameters = {leaf.size // towers for leaf in leaves}
    parameters |= {leaf.size // 2 for leaf in leaves}
    for each in moved:
        for size in map(entries, each.shapes):
            if each.kind == "all-reduce":  # gradients, losses and sums of vectors
                assert size <= all_vectors or size in parameters, each
            elif size > 2 * vectors:
                assert each.kind == "collective-permute" or (fsdp > 1 and size in parameters), each
    crossing = [each for each in moved if each.kind == "collective-permute"]
    large = [each for each in crossing if max(map(entries, each.shapes)) > vectors]
    # The values of each crossed layer, once forward and once back; of one stream and tower.
    assert len(large) == (2 * CROSSED if towers == 2 else 0)
    shape = len(batch.tokens) // shards, SMALL.num_heads, 64, SMALL.hidden_size // SMALL.num_heads
    values = f"bf16[{','.join(map(str, shape))}]"
    assert {each.shapes for each in large} <= {(values,)}


def entries(shape: str) -> int:
    """Number of entries of an array such as f32[2,3]."""
    return hlo.arrays(shape)[0].size


# The step below has 252 launches and moves 0.90 GB (0.94 GB with every operand whole).
MOST_LAUNCHES, MOST_BYTES, MOST_UPPER_BYTES = 264, 0.94e9, 0.985e9


@pytest.mark.slow
@needs_cuda
def test_h100_step_stays_under_its_recorded_limits():
    assert_under_limits(program_for("h100", STEP))


def assert_under_limits(found: Counted) -> None:
    """As recorded; a leaner step may lower them."""
    total = counts(found)
    assert 0.5 * MOST_LAUNCHES < total["launches"] <= MOST_LAUNCHES
    assert total["bytes"] <= MOST_BYTES and total["upper_bytes"] <= MOST_UPPER_BYTES
    kinds = by_kind(found.launches)
    assert all(kinds[kind]["launches"] for kind in (ATTENTION, NORM, GELU, PRODUCTS, OPTIMIZER))
    assert kinds[OTHER]["upper_bytes"] < 0.12 * total["upper_bytes"]
