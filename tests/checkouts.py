"""A small checkout whose launch scripts run for real, with stand-ins that record what they call."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Answers the questions that install.sh asks of an interpreter and records every other call.
PYTHON = """case "$1 $2" in
  "-c "*) exit 0 ;;
  "-m pip") [[ "$3" != --version ]] || exit 0 ;;
esac
printf '%s ' "$@" >>"$CALLS"; echo >>"$CALLS"
"""


def make_checkout(folder: Path) -> Path:
    """The launch scripts and a recording `.venv`; `bin` beside the checkout is first on PATH."""
    checkout = folder / "a checkout"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    (checkout / "requirements.txt").touch()
    (checkout / "requirements-dev.txt").touch()
    stand_in(checkout / ".venv" / "bin" / "python", PYTHON)
    (folder / "bin").mkdir()
    return checkout


def stand_in(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)
    return path


def environment(checkout: Path, settings: dict[str, str]) -> dict[str, str]:
    """This process's environment without what steers the scripts; calls land in `calls`."""
    steering = ("JTCSE_", "JAX_", "SLURM_", "PYTHON", "CI", "GLIBC_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(steering)}
    here = checkout.parent
    return kept | {
        "PATH": f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(here / "home"),
        "CALLS": str(here / "calls"),
        **settings,
    }


def bash(checkout: Path, script: str, *arguments: str, **settings: str):
    return subprocess.run(
        ["bash", checkout / script, *arguments],
        cwd=checkout.parent,  # from anywhere, not only from the checkout
        env=environment(checkout, settings),
        capture_output=True,
        text=True,
        timeout=120,
    )


def calls(checkout: Path) -> list[str]:
    path = checkout.parent / "calls"
    return [line.strip() for line in path.read_text().splitlines()] if path.exists() else []
