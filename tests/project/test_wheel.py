"""The wheel holds the whole product: it works away from the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from processes import QUICK_COMPILATION, ROOT, WITHOUT_TORCH
from tiny_models import write_senteval


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the content of a new wheel, as pip would install it."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "checkout"
    for name in ("jtcse_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, sources / name)
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", ".", *offline, "-w", str(folder / "built")]
    subprocess.run(command, cwd=sources, check=True, capture_output=True)
    (wheel,) = (folder / "built").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, *arguments: str, cwd: Path, code: int = 0) -> str:
    environment = {"PYTHONPATH": f"{WITHOUT_TORCH}:{installed}", "PATH": "/usr/bin:/bin"}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK_COMPILATION,
        "HOME": str(cwd),
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_module_recipe_and_data_file_is_in_the_wheel(installed):
    expected = {path.relative_to(ROOT) for path in (ROOT / "jtcse_jax").rglob("*.py")}
    expected |= {Path("jtcse_jax") / p.relative_to(ROOT) for p in (ROOT / "configs").glob("*.*")}
    expected |= {Path("jtcse_jax/evaluation/dev.tsv"), Path("jtcse_jax/report/page.html.jinja")}
    found = {path.relative_to(installed) for path in (installed / "jtcse_jax").rglob("*.*")}
    assert expected <= found
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))


@pytest.mark.slow
def test_training_evaluating_and_encoding_away_from_the_checkout(installed, tmp_path):
    assert "jtcse_jax 0." in run(installed, "jtcse_jax", "--version", cwd=tmp_path)
    overrides = ("--max-steps", "2", "--eval-every", "2", "--save-every", "2")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"sentence number {n} about topic {n % 7}" for n in range(200)))
    data = ("--data.source", "text.txt", "--workdir", "run")
    run(installed, "jtcse_jax", "train", "--config", "smoke", *overrides, *data, cwd=tmp_path)
    model = ("--model", "run")
    sts = str(write_senteval(tmp_path / "STS"))
    run(installed, "jtcse_jax", "evaluate", *model, "--sts", sts, cwd=tmp_path)
    files = ("--input", "text.txt", "--output", "v.npy")
    run(installed, "jtcse_jax", "encode", *model, *files, cwd=tmp_path)
    assert (tmp_path / "v.npy").stat().st_size > 200 * 4
    # The list of tasks is found: the first error is the missing task.
    tasks = ("--suite", "mteb", "--mteb-tasks", "NoSuchTask")
    assert "NoSuchTask" in run(
        installed, "jtcse_jax", "evaluate", *model, *tasks, cwd=tmp_path, code=2
    )


def test_the_command_lists_its_commands(installed, tmp_path):
    listed = run(installed, "jtcse_jax", "--help", cwd=tmp_path)
    assert all(f"\n  {name} " in listed for name in ("train", "encode", "report"))
    assert "nonsense" in run(installed, "jtcse_jax", "nonsense", cwd=tmp_path, code=2)
    unknown = run(installed, "jtcse_jax", "train", "--config", "nonsense", cwd=tmp_path, code=2)
    assert "nonsense" in unknown and "jtcse_minilm" in unknown
