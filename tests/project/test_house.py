"""What no linter checks: the sizes of files, and the list of commands."""

import ast

from processes import ROOT

from jtcse_jax.__main__ import COMMANDS

PACKAGE = ROOT / "jtcse_jax"


def test_files_stay_small_and_have_a_subject():
    assert not [path for path in PACKAGE.rglob("util*.py")]
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, path


def test_every_command_is_listed():
    """A command is a module, or a package with a `__main__`, that defines `main`."""
    files = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")]
    found = {
        (path.parent if path.name == "__main__.py" else path).stem
        for path in files
        if path != PACKAGE / "__main__.py"
        and any(getattr(node, "name", "") == "main" for node in ast.parse(path.read_text()).body)
    }
    assert found == set(COMMANDS)
