"""Reads the text of a compiled program (HLO): its computations, instructions and arrays.

HLO is XLA's language. A program is a list of computations, the last of which is the entry; an
instruction names its result's shape, its operation, its operands and its attributes:

    %add.3 = f32[64,768]{1,0} add(%x, %y), metadata={op_name="jit(step)/add"}
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128, "bf16": 16}
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$|^(ENTRY )?%?([\w.\-]+) \{\s*$")
_OP = re.compile(r" ?([\w\-]+)\(")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|called_computations)=\{?([^}]*?)[,}\s]")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))"
)
_SOURCE = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_TABLE = re.compile(r"^(\d+) (.*)$")


class ArrayShape(NamedTuple):
    """One array of an instruction's result."""

    dtype: str  #: XLA's name, for example bf16
    dims: tuple[int, ...]
    space: int = 0  #: memory space: 0 is the device's main memory

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without padding; tokens and opaque values have none."""
        return -(-self.size * _bits(self.dtype) // 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    arrays: tuple[ArrayShape, ...]  #: the result: one array, or those of a tuple
    op: str  #: for example fusion
    operands: tuple[str, ...]  #: names in the same computation
    argument: str  #: the text between the operation's parentheses
    attributes: str  #: the text after them
    is_root: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def source(self) -> str:
        """The jax operation that the instruction comes from, or ""."""
        match = _SOURCE.search(self.attributes)
        return match[1] if match else ""

    @property
    def frame(self) -> int:
        """Number of the Python frame that it comes from, or 0."""
        match = _FRAME.search(self.attributes)
        return int(match[1]) if match else 0

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls, without the branches of a conditional."""
        # The backend's configuration may contain anything.
        text = self.attributes.split(", backend_config=")[0].split(", metadata=")[0] + " "
        return tuple(name for part in _CALLED.findall(text) for name in _names(part))

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the computations of which a conditional runs one."""
        return tuple(
            name
            for listed, single in _BRANCHES.findall(self.attributes)
            for name in _names(listed or single)
        )

    def attribute(self, name: str) -> str:
        """The value of `name=VALUE` or `name={VALUE}`, or ""."""
        match = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|([^\s,]+))", self.attributes)
        return (match[1] or match[2] or "") if match else ""


@dataclass(frozen=True)
class Computation:
    """Instructions in the order of the text."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next((each for each in self if each.is_root), list(self)[-1])

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by number."""
        return {int(each.argument): each for each in self if each.op == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read a result, by its name."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for each in self:
            for operand in dict.fromkeys(each.operands):
                users.setdefault(operand, []).append(each)
        return users


@dataclass(frozen=True)
class Program:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str
    frames: dict[int, tuple[str, ...]]  #: functions of a Python frame and its callers, inner first


def parse(text: str) -> Program:
    """Reads the text of `compiled.as_text()`. Raises ValueError if it has no entry computation."""
    computations: dict[str, Computation] = {}
    entry, current = None, None
    tables = _Tables()
    for line in text.splitlines():
        if current is not None and line.startswith("}"):
            current = None
        elif current is not None:
            if instruction := parse_instruction(line):
                current.instructions[instruction.name] = instruction
        elif match := _HEAD.match(line):
            name = match[2] or match[4]
            current = computations[name] = Computation(name)
            if match[1] or match[3]:
                entry = name
        else:
            tables.read(line)
    if entry is None:
        raise ValueError("the text has no entry computation: it is not a compiled program")
    return Program(computations, entry, tables.frames())


def parse_instruction(line: str) -> Instruction | None:
    """The instruction in a line of a computation, or None."""
    left, equals, right = line.strip().partition(" = ")
    if not equals:
        return None
    end = _closing(right, 0) if right.startswith("(") else right.find(" ")
    match = _OP.match(right, end)
    if end < 0 or match is None:
        return None
    close = _closing(right, match.end() - 1)
    argument = right[match.end() : close - 1]
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        arrays=arrays(right[:end]),
        op=match[1],
        operands=tuple(_NAME.findall(argument)),
        argument=argument,
        attributes=right[close:],
        is_root=left.startswith("ROOT "),
    )


def arrays(shape: str) -> tuple[ArrayShape, ...]:
    """The arrays of a shape's text, in order; those of nested tuples too."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        space = _SPACE.search(layout)
        sizes = tuple(int(size) for size in dims.split(",") if size)
        found.append(ArrayShape(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)


class _Tables:
    """The tables before the computations that lead from a frame's number to function names."""

    def __init__(self):
        self._rows: dict[str, dict[int, str]] = {}
        self._current: dict[int, str] = {}

    def read(self, line: str) -> None:
        match = _TABLE.match(line)
        if match:
            self._current[int(match[1])] = match[2].strip('"')
        elif line.strip():
            self._current = self._rows.setdefault(line.strip(), {})

    def frames(self) -> dict[int, tuple[str, ...]]:
        """For each frame "file:function" of it and of its callers, inner first."""
        names, files = self._rows.get("FunctionNames", {}), self._rows.get("FileNames", {})
        places = {}
        for number, row in self._rows.get("FileLocations", {}).items():
            file = files.get(_number(row, "file_name_id"), "")
            places[number] = f"{file}:{names.get(_number(row, 'function_name_id'), '')}"
        rows = self._rows.get("StackFrames", {})
        # Numbers start at 1. A caller's number is one too high where the outermost names itself.
        shift = 1 if _number(rows.get(1, ""), "parent_frame_id") == 1 else 0
        chains: dict[int, tuple[str, ...]] = {}
        for number, row in sorted(rows.items()):  # a caller has a lower number
            outer = chains.get(_number(row, "parent_frame_id") - shift, ())
            chains[number] = (places.get(_number(row, "file_location_id"), ""), *outer)
        return chains


def _number(row: str, name: str) -> int:
    match = re.search(rf"\b{name}=(\d+)", row)
    return int(match[1]) if match else 0


def _names(text: str) -> list[str]:
    return [name.strip().lstrip("%") for name in text.split(",") if name.strip()]


def _closing(text: str, start: int) -> int:
    """Index after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    width = re.match(r"[a-z]+(\d+)", dtype)
    return int(width[1]) if width else 0
