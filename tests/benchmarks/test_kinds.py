"""The kind of an operation, by the Python functions from which it comes."""

import pytest

from benchmarks.program import hlo
from benchmarks.program.counts import count
from benchmarks.program.kinds import ATTENTION, CASTS, GELU, NORM, OPTIMIZER, OTHER, PRODUCTS


def kind_from(functions: tuple[str, ...], operation: str) -> str:
    """The kind of an instruction from these functions, inner first."""
    files = "\n".join(f'{n} "{each.split(":")[0]}"' for n, each in enumerate(functions, 1))
    names = "\n".join(f'{n} "{each.split(":")[1]}"' for n, each in enumerate(functions, 1))
    rows = "\n".join(
        f"{n} {{file_name_id={n} function_name_id={n}}}" for n in range(1, len(functions) + 1)
    )
    # Frames are numbered from the outermost.
    frames = "\n".join(
        f"{n + 1} {{file_location_id={len(functions) - n} parent_frame_id={n}}}"
        for n in range(len(functions))
    )
    text = f"FileNames\n{files}\n\nFunctionNames\n{names}\n\nFileLocations\n{rows}\n\n"
    text += f"StackFrames\n{frames}\n\nENTRY %main {{\n  %x = f32[9]{{0}} parameter(0)\n"
    text += f'  ROOT %y = f32[9]{{0}} {"multiply"}(%x, %x), metadata={{op_name="jit(f)/{operation}"'
    text += f" stack_frame_id={len(functions)}}}\n}}"
    (launch,) = count(hlo.parse(text)).launches
    return launch.kind


FUNCTIONS = {
    ATTENTION: ("dropout.py:dropout", "models/bert.py:Attention.__call__"),
    NORM: ("nn/normalization.py:_normalize", "nn/normalization.py:LayerNorm.__call__"),
    GELU: ("models/bert.py:Layer.__call__",),
    PRODUCTS: ("nn/linear.py:Linear.__call__", "models/bert.py:Attention.__call__"),
    OPTIMIZER: ("/optax/_src/transform.py:update_moment", "step.py:train_step"),
    CASTS: ("nn/dtypes.py:promote_dtype", "nn/linear.py:Linear.__call__"),
    OTHER: ("losses.py:info_nce",),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_kinds_follow_the_functions(kind):
    assert kind_from(FUNCTIONS[kind], "mul") == kind


def test_residuals_belong_to_the_norm_and_bits_to_dropout():
    assert kind_from(FUNCTIONS[GELU], "add") == NORM
    assert kind_from(("models/dropout.py:random_bits", "bert.py:Layer.__call__"), "xor") == NORM


def test_what_the_backward_pass_computes_again_for_gelu_is_gelu():
    # Under `jax.checkpoint` its own functions are not in the frames.
    frames = ("models/lean.py:activated_dense", "models/bert.py:Layer.__call__")
    assert kind_from(frames, "exp") == kind_from(frames, "convert_element_type") == GELU
    assert kind_from(("models/lean.py:product", *frames), "dot_general") == PRODUCTS


def test_products_of_an_attention_layer_are_products_and_its_weights_are_casts():
    attention = "models/bert.py:Attention._projected"
    for name in ("product", "joint_dense", "_dense", "_one_dense", "_joint_backward.<locals>.one"):
        assert kind_from((f"models/lean.py:{name}", attention), "concatenate") == PRODUCTS
    assert kind_from(("models/lean.py:_product", attention), "transpose") == ATTENTION
    assert (
        kind_from(("models/lean.py:_one_sum", "models/lean.py:_add_norm_backward"), "add") == NORM
    )
    assert kind_from(("models/parts.py:weights", attention), "convert_element_type") == CASTS


def test_the_optimizer_and_the_step_itself_are_the_optimizer():
    assert kind_from(("step.py:make_train_step.<locals>.train_step.<locals>.f",), "select_n") == (
        OPTIMIZER
    )
