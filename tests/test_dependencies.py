"""Imports point one way, and what is heavy or optional is imported where it is used."""

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jtcse_jax"
COMMANDS = {"train", "pipeline", "augment", "evaluate", "encode", "search", "export", "report"}
COMMANDS |= {"preflight", "prepare", "quickstart"}
LEAVES = {"data", "optimizer", "sharding", "checkpoint", "metrics", "evaluation"}
FOR_EVERYONE = {"errors", "batch", "architecture", "locks", "user_path"}
OPTIONAL = {
    *("torch", "sentence_transformers", "sentencepiece", "faiss", "mteb"),
    *("tensorflow_datasets", "datasets", "sklearn", "threadpoolctl", "wandb"),
    *("matplotlib", "jinja2", "apache_beam"),
}
# A module of sentence-transformers, copied into exported folders.
TORCH = "jtcse_jax.store.sum_of_towers"


def module_name(path: Path) -> str:
    """`jtcse_jax.data.tokens`, or `jtcse_jax` of the package's own file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def imports(name: str) -> frozenset[str]:
    """Full names of all modules that a module imports, anywhere in it."""
    return frozenset(imported(ast.walk(ast.parse(MODULES[name].read_text()))))


def imported(nodes) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            # `from package import module` imports a module, `from module import name` does not.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = node.module.split(".")[0] == "jtcse_jax"
            found |= (names & MODULES.keys()) if ours and names & MODULES.keys() else {node.module}
    return found


def at_import(tree: ast.AST):
    """The nodes that run when the module is imported: all but the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_import(node)


def ours(name: str) -> set[str]:
    """The parts of the package (files or folders at its top) that a module imports."""
    return {
        other.removeprefix("jtcse_jax").removeprefix(".").split(".")[0]
        for other in imports(name)
        if other.split(".")[0] == "jtcse_jax"
    }


def part(name: str) -> str:
    return name.removeprefix("jtcse_jax").removeprefix(".").split(".")[0]


def test_every_module_is_seen():
    assert {"jtcse_jax", "jtcse_jax.training.losses", "jtcse_jax.data.tokens"} <= MODULES.keys()
    assert "sharding" in ours("jtcse_jax.encoding.bank_encoder") and "config" in ours(
        "jtcse_jax.training.trainer"
    )
    assert LEAVES | COMMANDS <= {part(name) for name in MODULES}


def test_losses_and_masking_import_nothing_of_ours():
    assert ours("jtcse_jax.training.losses") == ours("jtcse_jax.training.masking") == set()


@pytest.mark.parametrize("name", [name for name in MODULES if part(name) == "models"])
def test_models_know_no_data_no_placement_and_no_losses(name):
    assert ours(name) <= {"models", "config"} | FOR_EVERYONE


@pytest.mark.parametrize(
    "name", [f"jtcse_jax.{name}" for name in sorted(FOR_EVERYONE | {"config"})]
)
def test_what_everyone_imports_imports_the_like_at_most(name):
    assert ours(name) <= {"errors", "architecture"} - {name.split(".")[1]}


def test_objectives_stand_on_models_and_losses_and_the_step_on_objectives():
    below = {"config", "models", "losses", "masking"} | FOR_EVERYONE
    assert ours("jtcse_jax.training.objectives") <= below
    assert ours("jtcse_jax.training.flops") <= below
    assert ours("jtcse_jax.training.gradients") <= below | {"objectives", "sharding"}
    gradients = {"objectives", "gradients", "sharding"}
    assert ours("jtcse_jax.training.train_step") <= below | gradients | {"flops", "compilation"}


@pytest.mark.parametrize("name", [name for name in MODULES if part(name) in LEAVES])
def test_leaves_do_not_import_each_other(name):
    allowed = {part(name), "config"} | FOR_EVERYONE
    beside = {"checkpoint": {"manifest", "orbax_parts"}, "metrics": {"output"}}
    allowed |= beside.get(part(name), set())
    assert ours(name) <= allowed


@pytest.mark.parametrize("name", MODULES)
def test_nobody_imports_a_command_line(name):
    assert not ours(name) & COMMANDS - {part(name)}


def test_there_is_no_cycle():
    """Removes modules that import only removed ones, until none is left."""
    left = {name: imports(name) & MODULES.keys() - {"jtcse_jax"} for name in MODULES}
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    assert not left


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {TORCH}))
def test_optional_packages_are_imported_where_they_are_used(name):
    found = imported(at_import(ast.parse(MODULES[name].read_text())))
    assert TORCH not in imports(name)
    assert not {module.split(".")[0] for module in found} & OPTIONAL


def test_files_say_what_they_are_and_stay_small():
    assert not [path for path in PACKAGE.rglob("util*.py")]
    for name, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text())) or not path.read_text().strip(), name
        assert len(path.read_text().splitlines()) <= 350, name
