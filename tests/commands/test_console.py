"""Commands on a console that is not UTF-8: what it cannot show is replaced, nothing ends early."""

import os
import subprocess
import sys

import pytest
from processes import WITHOUT_TORCH
from tiny_models import tiny_model

from jtcse_jax.store import exported

CONSOLES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("console")
    exported.export(tiny_model(1), folder / "模型")
    (folder / "текст.txt").write_text("the cat\n你好 the dog\n", encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("console", "arguments", "status"),
    [
        ("ascii", ("search", "--input", "текст.txt", "--query", "the cat"), 0),
        ("C", ("encode", "--input", "текст.txt", "--output", "вектор.npy"), 0),
        ("cp1252", ("encode", "--input", "нет.txt", "--output", "x.npy"), 2),
        ("C", ("export", "--output", "новая"), None),  # its libraries may not write such a path
    ],
)
def test_console_of_another_encoding(folder, tmp_path, console, arguments, status):
    for name in ("模型", "текст.txt"):
        (tmp_path / name).symlink_to(folder / name)
    command, *options = arguments
    done = subprocess.run(
        [sys.executable, "-m", f"jtcse_jax.{command}", "--model", "模型", *options],
        cwd=tmp_path,
        env=os.environ | CONSOLES[console] | {"PYTHONPATH": f"{WITHOUT_TORCH}:{os.getcwd()}"},
        capture_output=True,
    )
    assert done.returncode in ((0, 2) if status is None else (status,)), done.stderr.decode()
    assert b"Traceback" not in done.stderr
    if command == "search":
        assert b"?? the dog" in done.stdout


def test_queries_in_another_encoding_are_one_line(folder):
    done = subprocess.run(
        [sys.executable, "-m", "jtcse_jax.search", "--model", folder / "模型", "--input"]
        + [folder / "текст.txt"],
        input="你好\n".encode(),
        env=os.environ | CONSOLES["ascii"] | {"PYTHONPATH": WITHOUT_TORCH},
        capture_output=True,
    )
    assert done.returncode == 2 and b"PYTHONIOENCODING" in done.stderr, done.stderr.decode()
