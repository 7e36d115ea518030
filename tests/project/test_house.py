"""What no linter checks: the sizes of files, and the list of commands."""

import ast

from processes import ROOT

from jtcse_jax.__main__ import COMMANDS

PACKAGE = ROOT / "jtcse_jax"


def test_files_and_functions_stay_small_and_have_a_subject():
    assert not [path for path in PACKAGE.rglob("util*.py")]
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    assert not [path for path, text in texts.items() if len(text.splitlines()) > 350]
    long = {
        f"{path}: {node.name}": lines_of_code(node)
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and lines_of_code(node) > 60
    }
    assert not long


def lines_of_code(function: ast.FunctionDef) -> int:
    """Lines of a function after its arguments and its docstring."""
    start = function.body[0].lineno - 1
    if ast.get_docstring(function) is not None:
        start = function.body[0].end_lineno
    return function.end_lineno - start


def test_every_command_is_listed():
    """A command is a module, or a package with a `__main__`, that binds `main`."""
    files = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")]
    found = {
        (path.parent if path.name == "__main__.py" else path).stem
        for path in files
        if path != PACKAGE / "__main__.py" and "\nmain = " in path.read_text()
    }
    assert found == set(COMMANDS)
