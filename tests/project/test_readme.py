"""Every command of the README is run, in a copy of the checkout, on small data."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from processes import QUICK_COMPILATION, ROOT, WITHOUT_TORCH
from runs import write_dev, write_text
from tiny_models import write_senteval, write_small_minilm

README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = ["--max-steps", "1", "--eval-every", "1", "--log-every", "1", "--data.batch-size", "4"]
# By the start of a command: what makes it small, or why it is not run here.
ADDED = {
    "bash launch/local.sh": SMALL,
    "bash launch/test.sh": "it runs this test; tests/project/test_launch.py tries the script",
    ".venv/bin/pip install": "tests use no network; the packages are in requirements-dev.txt",
    ".venv/bin/python -m jtcse_jax.train": SMALL,
    ".venv/bin/python -m jtcse_jax.pipeline": [
        *(
            option
            for stage in ("tncse", "simcse", "distilled")
            for option in (f"--stages.{stage}.max-steps", "1")
            + (f"--stages.{stage}.data.batch-size", "4")
        ),
    ],
    ".venv/bin/python -m jtcse_jax.augment repeat-words": [],
    ".venv/bin/python -m jtcse_jax.augment mine-negatives": [],
    ".venv/bin/python -m jtcse_jax.preflight": [],
    ".venv/bin/python -m jtcse_jax.augment back-translate": "needs a translation model of the hub",
    ".venv/bin/python -m jtcse_jax.encode": [],
    ".venv/bin/python -m jtcse_jax.search": [],
    ".venv/bin/python -m jtcse_jax.pairs": [],
    ".venv/bin/python -m jtcse_jax.evaluate": [],
    ".venv/bin/python -m jtcse_jax.export": [],
    ".venv/bin/python -m jtcse_jax.report": [],
    ".venv/bin/python -m benchmarks.train_step": [
        *("--size", "tiny", "--batch", "4", "--batches", "1"),
        *("--rounds", "1", "--turns", "1", "--objective", "jtcse", "--against"),
    ],
}

# One process runs all commands (the words after `python -m`) and the Python code. A process for
# each would import everything again and take about twice as long.
ONE_AFTER_THE_OTHER = """
import json, runpy, sys

for command in json.loads(sys.argv[1]):
    print("$", command, file=sys.stderr)
    if isinstance(command, str):
        exec(command, {"__name__": "__main__"})
        continue
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = "".join(blocks("bash")).splitlines()
    return [line.split("  # ")[0].split("   #")[0].strip() for line in lines if line.strip()]


def test_the_two_commands_come_first():
    assert commands()[:2] == ["bash launch/local.sh", "bash launch/test.sh"]


def start_of(command: str) -> str | None:
    return next((start for start in ADDED if command.startswith(start)), None)


def test_every_command_is_known_here():
    for command in commands():
        assert start_of(command), command


def run(words: list[str], **options) -> None:
    result = subprocess.run(words, capture_output=True, text=True, timeout=900, **options)
    assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_every_command_runs(tmp_path):
    checkout = tmp_path / "checkout"
    for folder in ("jtcse_jax", "configs", "launch", "benchmarks"):
        shutil.copytree(ROOT / folder, checkout / folder)
    (checkout / ".venv").symlink_to(sys.prefix)
    write_small_minilm(checkout)
    write_text(checkout / "sentences.txt")
    write_dev(checkout / "dev.tsv")
    write_senteval(checkout / "STS")
    environment = {
        **os.environ,
        "JTCSE_INSTALL": "no",
        "HOME": str(tmp_path),
        "XLA_FLAGS": QUICK_COMPILATION,
        "PYTHONPATH": WITHOUT_TORCH,
    }
    ran, together = 0, []
    for command in [*commands(), *blocks("python")]:
        start = start_of(command)
        if start is None:
            together.append(command)
            continue
        if isinstance(ADDED[start], str):
            continue
        words = shlex.split(command) + ADDED[start]
        if words[0] == ".venv/bin/python" and "benchmarks" not in command:
            together.append(words[2:])
            continue
        run(words, cwd=checkout, env=environment)
        ran += 1
    in_one = [".venv/bin/python", "-c", ONE_AFTER_THE_OTHER, json.dumps(together)]
    run(in_one, cwd=checkout, env=environment)
    ran += len(together)
    skipped = sum(isinstance(ADDED[start], str) for start in map(start_of, commands()))
    assert ran == len(commands()) - skipped + 1
    assert {"README.md", "modules.json", "tower_0", "tower_1"} <= {
        path.name for path in (checkout / "exported").iterdir()
    }


def test_documents_name_files_that_exist():
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = document.read_text(encoding="utf-8")
        for name in re.findall(
            r"`((?:configs|docs|launch|tests|jtcse_jax|benchmarks)/[\w./-]+)`", text
        ):
            assert (ROOT / name).exists(), f"{document.name} names {name}"
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
