"""Programs written by hand: what is read of their text, and what is counted in it."""

import pytest

from benchmarks.program import hlo
from benchmarks.program.counts import Counted, Launch, count
from benchmarks.program.figures import counts, transfers
from benchmarks.program.kinds import COLLECTIVES, GELU, PRODUCTS


def counted(*lines: str, more: str = "") -> Counted:
    """What a program does whose entry has these lines; `more` are other computations."""
    body = "\n".join(f"  {line}" for line in lines)
    return count(
        hlo.parse(f"HloModule m\n{more}\nENTRY %main (x: f32[2]) -> f32[2] {{\n{body}\n}}")
    )


def one(*lines: str, more: str = "") -> Launch:
    (launch,) = counted(*lines, more=more).launches
    return launch


def test_instruction_is_read():
    line = (
        "  ROOT %fusion.7 = (f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/bf16[4]{0}) fusion(%a.1, "
        'f32[2]{0} %b), kind=kLoop, calls=%body.2, metadata={op_name="jit(f)/g(h)" '
        'stack_frame_id=3}, backend_config={"calls=%x":1}'
    )
    found = hlo.parse_instruction(line)
    assert (found.name, found.op, found.operands) == ("fusion.7", "fusion", ("a.1", "b"))
    assert found.arrays == (("f32", (2, 3), 1), ("bf16", (4,), 0))
    assert found.is_root and found.called == ("body.2",) and found.bytes == 24 + 8
    assert (found.source, found.frame) == ("jit(f)/g(h)", 3)
    assert hlo.parse_instruction("  // a comment") is None
    line = '%a = f32[2]{0} fusion(%x), calls=%body, backend_config={"text":"calls=%other "}'
    assert hlo.parse_instruction(line).called == ("body",)


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="not a compiled program"):
        hlo.parse("HloModule m")


FRAMES = """
FileNames
1 "/src/step.py"
2 "/src/bert.py"

FunctionNames
1 "train_step"
2 "attention_probs"

FileLocations
1 {file_name_id=1 function_name_id=1 line=4}
2 {file_name_id=2 function_name_id=2 line=7}

StackFrames
1 {file_location_id=1 parent_frame_id=PARENT}
2 {file_location_id=2 parent_frame_id=CALLER}
"""


@pytest.mark.parametrize("parent, caller", [(0, 1), (1, 2)])
def test_frames_lead_to_functions(parent, caller):
    """The compilers count callers from 0 or from 1."""
    text = FRAMES.replace("PARENT", str(parent)).replace("CALLER", str(caller))
    program = hlo.parse(f"{text}\nENTRY %main {{\n}}")
    outer = "/src/step.py:train_step"
    assert program.frames == {1: (outer,), 2: ("/src/bert.py:attention_probs", outer)}


def test_bytes_are_those_read_and_written():
    x, y = "%x = f32[100]{0} parameter(0)", "%y = bf16[100]{0} parameter(1)"
    launch = one(x, y, "ROOT %z = f32[100]{0} add(%x, %y)")
    assert launch.bytes == launch.upper_bytes == 400 + 200 + 400
    # An operand that is read twice is loaded once.
    assert one(x, "ROOT %z = f32[100]{0} multiply(%x, %x)").bytes == 800


def test_only_main_memory_counts():
    launch = one(
        "%x = f32[100]{0:T(128)S(1)} parameter(0)",
        "%y = f32[100]{0:T(128)} parameter(1)",
        "ROOT %z = f32[100]{0:T(128)S(1)} add(%x, %y)",
    )
    assert launch.bytes == 400
    # The start of a copy lists destination, source and a context.
    launch = one(
        "%x = f32[100]{0} parameter(0)",
        "%start = (f32[100]{0:S(1)}, f32[100]{0}, u32[]{:S(2)}) copy-start(%x)",
        "ROOT %done = f32[100]{0:S(1)} copy-done(%start)",
    )
    assert (launch.op, launch.bytes) == ("copy-start", 400)


SLICED = """
%body (p0: f32[50,100], p1: s32[]) -> f32[1,100] {
  %p0 = f32[50,100]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %s = f32[1,100]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,100}
}
%update (p0: f32[50,100], p1: f32[1,100], p2: s32[]) -> f32[50,100] {
  %p0 = f32[50,100]{1,0} parameter(0)
  %p1 = f32[1,100]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %twice = f32[1,100]{1,0} add(%p1, %p1)
  ROOT %u = f32[50,100]{1,0} dynamic-update-slice(%p0, %twice, %p2, %p2)
}
"""
STACK = ("%x = f32[50,100]{1,0} parameter(0)", "%i = s32[] parameter(1)")


def test_a_slice_is_not_its_whole_array():
    sliced = "ROOT %y = f32[1,100]{1,0} fusion(%x, %i), kind=kLoop, calls=%body"
    launch = one(*STACK, sliced, more=SLICED)
    assert launch.bytes == 400 + 4 + 400
    assert launch.upper_bytes == 20000 + 4 + 400
    rows = "%rows = f32[1,100]{1,0} parameter(2)"
    updated = "ROOT %y = f32[50,100]{1,0} fusion(%x, %rows, %i), kind=kLoop, calls=%update"
    launch = one(*STACK, rows, updated, more=SLICED)
    assert launch.bytes == 400 + 4 + 400
    assert launch.upper_bytes == 20000 + 400 + 4 + 20000


def test_a_slice_of_a_converted_array_reads_as_much_of_the_array():
    """XLA slices after it converts and compares, and a fusion computes only what it returns."""
    body = """
%body (p0: f32[50,100]) -> bf16[1,100] {
  %p0 = f32[50,100]{1,0} parameter(0)
  %low = bf16[50,100]{1,0} convert(%p0)
  %flat = bf16[5000]{0} bitcast(%low)
  %part = bf16[100]{0} slice(%flat), slice={[100:200]}
  ROOT %row = bf16[1,100]{1,0} bitcast(%part)
}
%whole (p0: f32[50,100]) -> bf16[50,100] {
  %p0 = f32[50,100]{1,0} parameter(0)
  ROOT %low = bf16[50,100]{1,0} convert(%p0)
}
"""
    sliced = "ROOT %y = bf16[1,100]{1,0} fusion(%x), kind=kLoop, calls=%body"
    assert one(STACK[0], sliced, more=body).bytes == 400 + 200
    whole = "ROOT %y = bf16[50,100]{1,0} fusion(%x), kind=kLoop, calls=%whole"
    assert one(STACK[0], whole, more=body).bytes == 20000 + 10000


def test_gathers_and_scatters_touch_what_they_name():
    table = "%table = f32[1000,10]{1,0} parameter(0)"
    ids = "%ids = s32[5]{0} parameter(1)"
    launch = one(table, ids, "ROOT %y = f32[5,10]{1,0} gather(%table, %ids), offset_dims={1}")
    assert launch.bytes == 200 + 20 + 200
    rows = "%rows = f32[5,10]{1,0} parameter(2)"
    added = "ROOT %y = f32[1000,10]{1,0} scatter(%table, %ids, %rows), to_apply=%add"
    # Ids and rows are read; the places are read and written.
    assert one(table, ids, rows, added).bytes == 20 + 200 + 400


LOOP = """
%inner (p0: f32[50,100], p1: s32[]) -> f32[1,100] {
  %p0 = f32[50,100]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %s = f32[1,100]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,100}
}
%body (arg: (s32[], f32[50,100])) -> (s32[], f32[50,100]) {
  %arg = (s32[], f32[50,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[50,100]{1,0} get-tuple-element(%arg), index=1
  %row = f32[1,100]{1,0} fusion(%x, %i), kind=kLoop, calls=%inner
  %sum = f32[1,100]{1,0} all-reduce(%row), to_apply=%add
  ROOT %t = (s32[], f32[50,100]{1,0}) tuple(%i, %x)
}
%condition (arg: (s32[], f32[50,100])) -> pred[] {
  %arg = (s32[], f32[50,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %n = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
"""
WHILE = "ROOT %w = (s32[], f32[50,100]{1,0}) while(%x), condition=%condition, body=%body"


@pytest.mark.parametrize(
    "known, trips", [(', backend_config={"known_trip_count":{"n":"50"}}', 50), ("", 12)]
)
def test_loops_count_once_per_trip(known, trips):
    found = counted("%x = (s32[], f32[50,100]{1,0}) parameter(0)", WHILE + known, more=LOOP)
    times = {each.op: each.times for each in found.launches}
    assert times == {"fusion": trips, "all-reduce": trips, "compare": trips + 1}
    assert found.transfers == [("all-reduce", ("f32[1,100]",), 400, trips, "")]
    total = counts(found)
    row, reduced, compare = 400 + 4 + 400, 800, 4 + 4 + 1
    assert total["bytes"] == trips * (row + reduced) + (trips + 1) * compare
    assert total["launches"] == total["small_launches"] == 3 * trips + 1
    assert total["loops_of_unknown_length"] == 0


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    endless = LOOP.replace("direction=LT", "direction=NE")
    found = counted("%x = (s32[], f32[50,100]{1,0}) parameter(0)", WHILE, more=endless)
    assert found.unknown_loops == 1
    assert {each.times for each in found.launches if each.op == "fusion"} == {1}


def test_only_one_branch_runs():
    more = """
%small (p: f32[10]) -> f32[10] {
  %p = f32[10]{0} parameter(0)
  ROOT %a = f32[10]{0} negate(%p)
}
%large (p: f32[10]) -> f32[10] {
  %p = f32[10]{0} parameter(0)
  %b = f32[10]{0} negate(%p)
  ROOT %c = f32[10]{0} all-reduce(%b), to_apply=%add
}
"""
    for branches in (
        "branch_computations={%small, %large}",
        "true_computation=%large, false_computation=%small",
    ):
        line = f"ROOT %y = f32[10]{{0}} conditional(%i, %x, %x), {branches}"
        found = counted("%i = s32[] parameter(0)", "%x = f32[10]{0} parameter(1)", line, more=more)
        assert [each.name for each in found.launches] == ["b", "c"]
        assert len(found.transfers) == 1


def test_calls_and_asynchronous_computations_are_followed():
    more = """
%called (p: f32[10]) -> f32[10] {
  %p = f32[10]{0} parameter(0)
  ROOT %n = f32[10]{0} negate(%p)
}
"""
    found = counted(
        "%x = f32[10]{0} parameter(0)",
        "%y = f32[10]{0} call(%x), to_apply=%called",
        "%s = ((f32[10]{0}), f32[10]{0}, s32[]) async-start(%y), calls=%called",
        "ROOT %d = f32[10]{0} async-done(%s), calls=%called",
        more=more,
    )
    assert [(each.op, each.bytes) for each in found.launches] == [("negate", 80)] * 2


def test_products_by_hand():
    x, y = "%x = bf16[8,64,32]{2,1,0} parameter(0)", "%y = bf16[8,32,16]{2,1,0} parameter(1)"
    dims = "lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}"
    dot = f"f32[8,64,16]{{2,1,0}} dot(%x, %y), {dims}, rhs_contracting_dims={{1}}"
    expected = 2 * 8 * 64 * 16 * 32
    launch = one(x, y, f"ROOT %z = {dot}")
    assert (launch.flops, launch.kind) == (expected, PRODUCTS)
    body = f"%gemm (x: f32[1]) -> f32[1] {{\n  {x}\n  {y}\n  ROOT %z = {dot}\n}}\n"
    fusion = "ROOT %z = f32[8,64,16]{2,1,0} fusion(%x, %y), kind=kCustom, calls=%gemm"
    assert one(x, y, fusion, more=body).flops == expected
    library = (
        "ROOT %z = (f32[8,64,16]{2,1,0}, s8[4096]{0}) custom-call(%x, %y), "
        'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
        '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"]}}}'
    )
    assert one(x, y, library).flops == expected


def test_products_as_convolutions():
    x, w = "%x = bf16[8,64,32]{2,1,0} parameter(0)", "%w = bf16[32,16,1]{1,0,2} parameter(1)"
    dense = "bf16[8,64,16]{2,1,0} convolution(%x, %w), window={size=1}, dim_labels=0bf_io0->0bf"
    assert one(x, w, f"ROOT %z = {dense}").flops == 2 * 8 * 64 * 16 * 32
    # Eight products side by side: a window over the batch meets one dilated entry at a time.
    y = "%w = bf16[8,16,32]{2,1,0} parameter(1)"
    batched = (
        "ROOT %z = bf16[8,64,16]{2,1,0} convolution(%x, %w), "
        "window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf"
    )
    assert one(x, y, batched).flops == 2 * 8 * 64 * 16 * 32


def test_collectives_list_their_results():
    x = "%x = bf16[4,8]{1,0} parameter(0)"
    gather = (
        "%s = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%x), dimensions={0}, "
        'metadata={op_name="jit(f)/gather"}'
    )
    found = counted(x, gather, "ROOT %d = bf16[16,8]{1,0} all-gather-done(%s)")
    assert found.transfers == [("all-gather", ("bf16[16,8]",), 256, 1, "jit(f)/gather")]
    assert [(each.kind, each.bytes) for each in found.launches] == [(COLLECTIVES, 64 + 256)]
    permute = (
        "%s = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], u32[]) collective-permute-start(%x), "
        "source_target_pairs={{0,1}}"
    )
    found = counted(x, permute, "ROOT %d = bf16[4,8]{1,0} collective-permute-done(%s)")
    assert found.transfers == [("collective-permute", ("bf16[4,8]",), 64, 1, "")]
    reduce = "ROOT %s = (bf16[4,8]{1,0}, f32[]) all-reduce(%x, %y), to_apply=%add"
    found = counted(x, "%y = f32[] parameter(1)", reduce)
    assert found.transfers == [("all-reduce", ("bf16[4,8]", "f32[]"), 68, 1, "")]
    assert transfers(found) == [
        {"kind": "all-reduce", "shapes": ["bf16[4,8]", "f32[]"], "count": 1, "bytes": 68}
    ]


def test_a_collective_in_three_parts_counts_once():
    """A TPU writes it at its start, in what runs meanwhile and at its end."""
    part = """
%NAME (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  %all-gather.1 = f32[8]{0} all-gather(%p), dimensions={0}
  ROOT %c = f32[8]{0} custom-call(%all-gather.1), custom_call_target="AsyncCollectiveTARGET"
}
"""
    more = "".join(
        part.replace("NAME", name).replace("TARGET", target)
        for name, target in (("start", "Start"), ("end", "Done"))
    )
    found = counted(
        "%x = f32[4]{0} parameter(0)",
        "%a = f32[8]{0} fusion(%x), kind=kCustom, calls=%start",
        "ROOT %b = f32[8]{0} fusion(%a), kind=kCustom, calls=%end",
        more=more,
    )
    assert found.transfers == [("all-gather", ("f32[8]",), 32, 1, "")]
    assert [each.kind for each in found.launches] == [COLLECTIVES] * 2


def test_a_fusion_takes_the_kind_of_most_bytes():
    more = """
%body (p: f32[100]) -> f32[4] {
  %p = f32[100]{0} parameter(0)
  %g = f32[100]{0} multiply(%p, %p), metadata={op_name="jit(f)/jit(gelu)/mul"}
  %s = f32[4]{0} slice(%g), metadata={op_name="jit(f)/dropout/slice"}
  ROOT %n = f32[4]{0} negate(%s), metadata={op_name="jit(f)/dropout/neg"}
}
"""
    fusion = "%y = f32[4]{0} fusion(%x), kind=kLoop, calls=%body"
    x = "%x = f32[100]{0} parameter(0)"
    assert one(x, f"ROOT {fusion}", more=more).kind == GELU
    # A copy that the compiler adds belongs to what reads it.
    found = counted("%z = f32[100]{0} parameter(0)", "%x = f32[100]{0} copy(%z)", fusion, more=more)
    assert [each.kind for each in found.launches] == [GELU, GELU]
