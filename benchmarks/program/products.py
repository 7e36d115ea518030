"""Operations of the matrix products in a compiled program.

A multiplication and an addition count as one operation each, as in `jtcse_jax/training/flops.py`.
TPUs run products as convolutions, GPUs also as calls of a library.
"""

import math
import re

from benchmarks.program.hlo import ArrayShape, Computation, Instruction, Program

_WINDOW = re.compile(r"(\w+)=([\dx_\-]+)")
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')


def product_flops(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Operations of an instruction's products, those inside a fusion included."""
    if instruction.op == "dot":
        contracted = instruction.attribute("lhs_contracting_dims")
        return _contraction(computation, instruction, contracted)
    if instruction.op == "convolution":
        return _convolution(computation, instruction)
    if instruction.op == "custom-call" and "gemm" in instruction.attribute("custom_call_target"):
        match = _CONTRACTED.search(instruction.attributes)
        return _contraction(computation, instruction, match[1].replace('"', "") if match else "")
    if instruction.op == "fusion":
        bodies = [program.computations.get(name) for name in instruction.called]
        return math.fsum(
            product_flops(program, body, each) for body in bodies if body for each in body
        )
    return 0.0


def _contraction(computation: Computation, product: Instruction, contracted: str) -> float:
    left = computation.instructions.get(product.operands[0])
    if left is None or not left.arrays:
        return 0.0
    axes = [int(axis) for axis in contracted.split(",") if axis.strip()]
    return 2.0 * product.arrays[0].size * math.prod(left.arrays[0].dims[axis] for axis in axes)


def _convolution(computation: Computation, product: Instruction) -> float:
    """2 * batch * output features * input features, for every pair of window and position.

    A TPU's product with batch dimensions is a convolution over them, with a dilated input of which
    each window meets one entry.
    """
    operands = [computation.instructions.get(name) for name in product.operands[:2]]
    labels = re.match(r"(\w+)_(\w+)->(\w+)", product.attribute("dim_labels"))
    if None in operands or not labels:
        return 0.0
    image, kernel, result = operands[0].arrays[0], operands[1].arrays[0], product.arrays[0]
    total = 2.0 * _size(result, labels[3], "b") * _size(result, labels[3], "f")
    total *= _size(kernel, labels[2], "i")
    window = {name: value.split("x") for name, value in _WINDOW.findall(_window(product))}
    for number in range(sum(letter.isdigit() for letter in labels[3])):
        axis = str(number)
        sizes = (
            _size(array, label, axis)
            for array, label in ((image, labels[1]), (kernel, labels[2]), (result, labels[3]))
        )
        total *= _pairs(*sizes, {name: values[number] for name, values in window.items()})
    return total


def _pairs(image: int, kernel: int, result: int, window: dict[str, str]) -> int:
    """Pairs of an output position and a place of the window that meet an entry of the input."""
    stride, dilation = int(window.get("stride", 1)), int(window.get("rhs_dilate", 1))
    spread = int(window.get("lhs_dilate", 1))
    before = int(window.get("pad", "0_0").rsplit("_", 1)[0])
    last = (image - 1) * spread
    return sum(
        0 <= place <= last and place % spread == 0
        for position in range(result)
        for place in (position * stride + step * dilation - before for step in range(kernel))
    )


def _window(product: Instruction) -> str:
    match = re.search(r"window=\{([^}]*)\}", product.attributes)
    return match[1] if match else ""


def _size(array: ArrayShape, labels: str, label: str) -> int:
    return array.dims[labels.index(label)] if label in labels else 1
