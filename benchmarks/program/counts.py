"""What a compiled program does when it runs: its launches, what they move, its collectives.

Instructions inside a loop count once per trip. Bytes are those that a launch reads from and writes
to the device's main memory: of an array from which it takes a slice or gathers, only what it takes;
of an array that is updated in place, only the update. `upper_bytes` counts every operand whole.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from benchmarks.program.hlo import ArrayShape, Computation, Instruction, Program
from benchmarks.program.kinds import OTHER, collective, kind_of
from benchmarks.program.products import product_flops

# Instructions that the device does not run.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("add-dependency", "opt-barrier", "optimization-barrier", "partition-id", "replica-id"),
}
_TRIPS = re.compile(r'known_trip_count"?[:=]\{"n":"(\d+)"')
_SLICES = {"dynamic-slice", "slice", "gather"}
_PASSING = {"bitcast", "get-tuple-element", "copy-done", "async-done", "slice-done"}
_SAME = {"bitcast", "reshape", "get-tuple-element"}
# Each entry of the result needs one entry of the operand. A fusion computes only those it uses.
_ENTRY_BY_ENTRY = {"convert", "copy", "transpose", "compare"}


@dataclass(frozen=True)
class Launch:
    """One instruction that the device runs."""

    name: str
    op: str
    kind: str  #: one of `kinds.KINDS`
    times: int  #: how often a run executes it
    bytes: int  #: of one execution
    upper_bytes: int
    flops: float  #: products of one execution
    result: str  #: the first array of the result
    source: str


class Transfer(NamedTuple):
    """A collective."""

    kind: str  #: for example all-gather
    shapes: tuple[str, ...]  #: the results on one device
    bytes: int  #: of the results
    times: int
    source: str


@dataclass(frozen=True)
class Counted:
    """A program's launches and collectives, in the order of its text."""

    launches: list[Launch]
    transfers: list[Transfer]
    unknown_loops: int  #: loops without a known number of trips, counted once


def count(program: Program) -> Counted:
    """Counts what one run of the program executes."""
    walk = _Walk(program)
    launches = list(walk.launches(program.entry, 1))
    return Counted(launches, walk.transfers, walk.unknown_loops)


class _Walk:
    """Follows calls, loops and branches from the entry."""

    def __init__(self, program: Program):
        self.program = program
        self.transfers: list[Transfer] = []
        self.unknown_loops = 0
        self._kinds: dict[tuple[str, str], str] = {}

    def launches(self, name: str, times: int) -> Iterator[Launch]:
        for each in self.program.computations[name]:
            if each.op == "while":
                yield from self._loop(each, times)
            elif each.op == "conditional":
                yield from self._largest_branch(each, times)
            elif each.op in ("call", "async-start"):
                for called in each.called:
                    yield from self.launches(called, times)
            elif each.op not in _FREE and not each.op.endswith(("-done", "-update")):
                yield self._launch(name, each, times)

    def _loop(self, loop: Instruction, times: int) -> Iterator[Launch]:
        trips = trip_count(self.program, loop)
        self.unknown_loops += trips is None
        trips = 1 if trips is None else trips
        condition, body = _called_by(loop)
        # The condition is evaluated once more than the body.
        yield from self.launches(condition, times * (trips + 1))
        yield from self.launches(body, times * trips)

    def _largest_branch(self, conditional: Instruction, times: int) -> Iterator[Launch]:
        transfers, largest = self.transfers, ([], [])
        for name in conditional.branches:
            self.transfers = []
            branch = list(self.launches(name, times))
            if not largest[0] or _moved(branch) > _moved(largest[0]):
                largest = (branch, self.transfers)
        self.transfers = transfers + largest[1]
        yield from largest[0]

    def _launch(self, name: str, each: Instruction, times: int) -> Launch:
        computation = self.program.computations[name]
        self.transfers += _transfers(self.program, each, times)
        flops = product_flops(self.program, computation, each)
        moved, upper = traffic(self.program, computation, each)
        return Launch(
            name=each.name,
            op=each.op,
            kind=self._kind(computation, each),
            times=times,
            bytes=moved,
            upper_bytes=upper,
            flops=flops,
            result=str(each.arrays[0]) if each.arrays else "",
            source=each.source,
        )

    def _kind(self, computation: Computation, each: Instruction) -> str:
        """The instruction's kind; a copy made by the compiler has that of whatever reads it."""
        key = computation.name, each.name
        if key not in self._kinds:
            is_product = product_flops(self.program, computation, each) > 0
            kind = kind_of(self.program, each, is_product=is_product)
            self._kinds[key] = kind
            if kind == OTHER and "/" not in each.source:  # none, or the name of an argument
                near = [*_readers(computation, each), *_producers(computation, each)]
                known = (self._kind(computation, one) for one in near)
                self._kinds[key] = next((one for one in known if one != OTHER), OTHER)
        return self._kinds[key]


def trip_count(program: Program, loop: Instruction) -> int | None:
    """How often a loop's body runs: what the compiler wrote, or the bound of a count from 0."""
    if match := _TRIPS.search(loop.attributes):
        return int(match[1])
    condition = program.computations[_called_by(loop)[0]]
    every = [inner for each in condition for inner in (each, *_inside(program, each))]
    bounds = [
        int(each.argument)
        for each in every
        if each.op == "constant" and re.fullmatch(r"\d+", each.argument)
    ]
    compares = [each for each in every if each.attribute("direction") == "LT"]
    return bounds[0] if len(bounds) == 1 and len(compares) == 1 else None


def traffic(
    program: Program, computation: Computation, instruction: Instruction
) -> tuple[int, int]:
    """Bytes that an instruction moves: as it reads and writes, and with all operands whole."""
    operands = [computation.instructions.get(name) for name in instruction.operands]
    known = list({each.name: each for each in operands if each is not None}.values())
    written = _results(instruction, known)
    upper = _main(written) + sum(_main(each.arrays) for each in known)
    body = _body(program, instruction)
    if body is None:
        # As a fusion of one instruction.
        body = Computation("", {each.name: replace(each, op="parameter") for each in known})
        body.instructions[instruction.name] = replace(instruction, is_root=True)
        parameters = {each.name: each for each in known}
    else:
        parameters = {
            each.name: body.parameters.get(number, each)
            for number, each in enumerate(operands)
            if each is not None
        }
    read = sum(_read(program, body, parameters[each.name], _main(each.arrays)) for each in known)
    return min(upper, read + _written(body, body.root, _main(written))), upper


def _read(program: Program, body: Computation, parameter: Instruction, whole: int) -> int:
    """Bytes that a fusion reads of one parameter, of which `whole` are in main memory."""
    total = 0
    for user in body.users.get(parameter.name, ()):
        is_first = bool(user.operands) and user.operands[0] == parameter.name
        nested = _body(program, user)
        if user.op in _SLICES and is_first:
            total += user.bytes
        elif user.op in ("dynamic-update-slice", "scatter") and is_first:
            continue
        elif user.op in _SAME:
            total += _read(program, body, user, whole)
        elif user.op in _ENTRY_BY_ENTRY and not user.is_root:
            total += _read(program, body, user, user.bytes) * whole // user.bytes
        elif user.op == "tuple":
            continue
        elif nested is not None:
            for number, name in enumerate(user.operands):
                if name == parameter.name and number in nested.parameters:
                    total += _read(program, nested, nested.parameters[number], whole)
        else:
            return whole
    return min(total, whole)


def _written(body: Computation, root: Instruction, whole: int) -> int:
    """Bytes that a fusion writes, of a result of which `whole` are in main memory."""
    if root.op == "tuple":
        parts = [body.instructions[name] for name in root.operands if name in body.instructions]
        return min(whole, sum(_written(body, part, _main(part.arrays)) for part in parts))
    if root.op in _SAME and root.operands and root.operands[0] in body.instructions:
        return _written(body, body.instructions[root.operands[0]], whole)
    if root.op in ("dynamic-update-slice", "scatter"):
        # The update is written; a scatter also reads what it adds to.
        number, factor = (1, 1) if root.op == "dynamic-update-slice" else (-1, 2)
        update = body.instructions.get(root.operands[number])
        return min(whole, factor * update.bytes) if update else whole
    return whole


def _results(instruction: Instruction, operands: list[Instruction]) -> list[ArrayShape]:
    """The arrays that an instruction writes; the "-start" of a pair lists its operands too."""
    results = list(instruction.arrays)
    if instruction.op.endswith("-start") and len(results) > 1:
        for array in (array for each in operands for array in each.arrays):
            if array in results:
                results.remove(array)
    return results or list(instruction.arrays)


def _transfers(program: Program, launch: Instruction, times: int) -> list[Transfer]:
    """The collectives that a launch is, starts or contains."""
    inside = list(_inside(program, launch))
    # A TPU names one collective three times: at its start, while others run, and at its end.
    parts = {each.attribute("custom_call_target").strip('"') for each in inside}
    if any(part.startswith("AsyncCollective") for part in parts - {"AsyncCollectiveStart"}):
        return []
    found = [(collective(each), each) for each in (launch, *inside)]
    return [_transfer(kind, each, times) for kind, each in found if kind]


def _readers(computation: Computation, each: Instruction) -> Iterator[Instruction]:
    for user in computation.users[each.name]:
        if user.op in _PASSING:
            yield from _readers(computation, user)
        elif user.op not in _FREE:
            yield user


def _producers(computation: Computation, each: Instruction) -> Iterator[Instruction]:
    for name in each.operands:
        operand = computation.instructions.get(name)
        if operand is not None and operand.op in _PASSING:
            yield from _producers(computation, operand)
        elif operand is not None and operand.op not in _FREE:
            yield operand


def _transfer(kind: str, instruction: Instruction, times: int) -> Transfer:
    shapes = list(instruction.arrays)
    # A "-start" lists operands, results and scalars of its own; that of an all-reduce only results.
    if instruction.op.endswith("-start") and kind != "all-reduce" and len(shapes) > 1:
        shapes = [array for array in shapes if array.dims] or shapes
        shapes = shapes[len(shapes) // 2 :]
    total = sum(array.bytes for array in shapes)
    return Transfer(kind, tuple(map(str, shapes)), total, times, instruction.source)


def _body(program: Program, instruction: Instruction) -> Computation | None:
    if instruction.op != "fusion" or not instruction.called:
        return None
    return program.computations.get(instruction.called[0])


def _inside(program: Program, instruction: Instruction) -> Iterator[Instruction]:
    body = _body(program, instruction)
    for each in body or ():
        yield each
        yield from _inside(program, each)


def _called_by(loop: Instruction) -> tuple[str, str]:
    return loop.attribute("condition").lstrip("%"), loop.attribute("body").lstrip("%")


def _main(arrays: tuple[ArrayShape, ...] | list[ArrayShape]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)


def _moved(launches: list[Launch]) -> float:
    return math.fsum(each.times * each.bytes for each in launches)
