"""What a launch is for: attention, LayerNorm and dropout, GELU, products, optimizer, casts.

A compiled instruction keeps the jax operation and the Python functions it comes from. A fusion
takes the kind of most of the bytes that its instructions compute.
"""

import re
from collections import Counter
from collections.abc import Iterable

from benchmarks.program.hlo import Computation, Instruction, Program

ATTENTION, NORM, GELU = "attention", "LayerNorm and dropout", "GELU"
PRODUCTS, OPTIMIZER, CASTS = "products", "optimizer", "casts"
COLLECTIVES, OTHER = "collectives", "other"
KINDS = (ATTENTION, NORM, GELU, PRODUCTS, OPTIMIZER, CASTS, COLLECTIVES, OTHER)

# The first pattern counts that is found in "operation|inner function<its caller<...|path of jax
# operations". The weight is low for what is usually only a small part of a fusion.
_RULES = (
    (OPTIMIZER, 1.0, r"/optax/|/optimizer\.py:|\|state\.opt_state"),
    (OPTIMIZER, 1.0, r"^[^|]*\|[^<]*train_step\.<locals>\.train_step\.<locals>\."),
    (CASTS, 0.01, r"^[^|]*\|[^<]*(?:promote_dtype|parts\.py:weights)"),
    (CASTS, 0.01, r"^convert_element_type\|[^<]*:Layer\.__call__"),
    (PRODUCTS, 1.0, r"^[^|]*\|[^<]*(?:Linear\.__call__|lean\.py:product)"),
    (PRODUCTS, 1.0, r"^[^|]*\|[^<]*lean\.py:(?:_joint_|(?:joint|_one|_split|_single)?_dense)"),
    (NORM, 0.01, r"random_bits|threefry"),
    (ATTENTION, 1.0, r"(?i)attention|exchanged|from_next_tower"),
    (GELU, 1.0, r"(?i)gelu|activated_dense|^erfc?\b"),
    (NORM, 1.0, r"(?i)layer_?norm|add_norm|/normalization\.py:|dropout"),
    (NORM, 1.0, r"^(?:add|add_any)\|[^<]*Layer\.__call__"),  # the residual
    (GELU, 1.0, r"^(?:mul|div|neg|exp|integer_pow|square|sub)\|[^<]*Layer\.__call__"),
)
_PATTERNS = tuple((kind, weight, re.compile(pattern)) for kind, weight, pattern in _RULES)
# Instructions that compute nothing.
_FORMAL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "broadcast", "iota"}
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
    r"|ragged-all-to-all)(-start)?"
)


def kind_of(program: Program, instruction: Instruction, *, is_product: bool) -> str:
    """The kind of a launch; `is_product` if it computes a matrix product."""
    body = list(_bodies(program, instruction))
    if collective(instruction) or any(collective(each) for each in body):
        return COLLECTIVES
    if is_product:
        dots = [each for each in (instruction, *body) if each.op in ("dot", "convolution")]
        kinds = {_rule(program, each)[0] for each in dots or [instruction]}
        return ATTENTION if kinds == {ATTENTION} else PRODUCTS
    votes: Counter[str] = Counter()
    for each in body or [instruction]:
        if each.op not in _FORMAL:
            kind, weight = _rule(program, each)
            votes[kind] += weight * (each.bytes + 1)
    if not votes or votes.most_common(1)[0][0] == OTHER:
        kind, _ = _rule(program, instruction)
        return kind
    return votes.most_common(1)[0][0]


def collective(instruction: Instruction) -> str | None:
    """The collective that an instruction is or starts, for example all-gather, or None."""
    match = _COLLECTIVE.fullmatch(instruction.op)
    return match[1] if match else None


def _rule(program: Program, instruction: Instruction) -> tuple[str, float]:
    operation = instruction.source.rsplit("/", 1)[-1]
    functions = "<".join(program.frames.get(instruction.frame, ()))
    text = f"{operation}|{functions}|{instruction.source}"
    for kind, weight, pattern in _PATTERNS:
        if pattern.search(text):
            return kind, weight
    return OTHER, 0.1


def _bodies(program: Program, instruction: Instruction) -> Iterable[Instruction]:
    """The instructions of a fusion, those of fusions inside it too."""
    if instruction.op != "fusion":
        return
    for name in instruction.called:
        for each in program.computations.get(name, Computation(name)):
            yield each
            yield from _bodies(program, each)
