"""What no linter checks: the sizes of files, and the list of commands."""

import ast

from processes import ROOT

from jtcse_jax.__main__ import COMMANDS

PACKAGE = ROOT / "jtcse_jax"


def test_files_and_functions_stay_small_and_have_a_subject():
    assert not [path for path in PACKAGE.rglob("util*.py")]
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    assert not [path for path, text in texts.items() if len(text.splitlines()) > 350]
    assert not [
        f"{path}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]


def test_every_command_is_listed():
    """A command is a module, or a package with a `__main__`, that binds `main`."""
    files = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")]
    found = {
        (path.parent if path.name == "__main__.py" else path).stem
        for path in files
        if path != PACKAGE / "__main__.py" and "\nmain = " in path.read_text()
    }
    assert found == set(COMMANDS)
