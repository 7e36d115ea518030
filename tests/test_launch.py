"""The scripts run for real in a small checkout, with recording stand-ins for what they call."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(ROOT.glob("launch/*")) + [ROOT / ".ci" / "run"]

# Answers the questions that install.sh asks of an interpreter and records every other call.
PYTHON = """case "$1 $2" in
  "-c "*) exit 0 ;;
  "-m pip") [[ "$3" != --version ]] || exit 0 ;;
esac
printf '%s ' "$@" >>"$CALLS"; echo >>"$CALLS"
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout holding the launch scripts and a recording `.venv`; `bin` is first on PATH."""
    folder = tmp_path / "a checkout"
    shutil.copytree(ROOT / "launch", folder / "launch")
    (folder / "requirements.txt").touch()
    (folder / "requirements-dev.txt").touch()
    stand_in(folder / ".venv" / "bin" / "python", PYTHON)
    (tmp_path / "bin").mkdir()
    return folder


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


def test_local_installs_and_trains_the_quickstart(checkout):
    done = bash(checkout, "launch/local.sh", "--steps", "3", JTCSE_ACCELERATOR="cuda13")
    assert done.returncode == 0, done.stderr
    install, train = calls(checkout)
    assert install.endswith(f"-r {checkout}/requirements.txt jax[cuda13]")
    assert train == f"-m jtcse_jax.train --config {checkout}/configs/quickstart.py --steps 3"


@pytest.mark.parametrize("config", [["--config", "mine.py"], ["--config=mine.py"]])
def test_a_config_of_the_user_replaces_the_quickstart(checkout, config):
    done = bash(checkout, "launch/local.sh", *config, JTCSE_INSTALL="no")
    assert done.returncode == 0, done.stderr
    assert calls(checkout) == [" ".join(["-m jtcse_jax.train", *config])]


def test_cpu_asks_for_no_extra(checkout):
    bash(checkout, "launch/install.sh", JTCSE_ACCELERATOR="cpu")
    assert calls(checkout)[0].endswith(f"-r {checkout}/requirements.txt")


def test_unknown_accelerator(checkout):
    done = bash(checkout, "launch/install.sh", JTCSE_ACCELERATOR="gpu")
    assert done.returncode == 1 and "JTCSE_ACCELERATOR is 'gpu'" in done.stderr
    assert calls(checkout) == []


def test_too_old_a_python(checkout):
    shutil.rmtree(checkout / ".venv")
    old = stand_in(checkout.parent / "bin" / "old", "exit 1")
    done = bash(checkout, "launch/local.sh", PYTHON=str(old))
    assert done.returncode == 1 and "Python 3.11 or newer is needed" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("ci, everything", [("true", True), ("", False)])
def test_tests_run_after_style_and_in_ci_with_the_slow_ones(checkout, ci, everything):
    bash(checkout, "launch/test.sh", "-k", "some", CI=ci)
    install, style, tests = calls(checkout)
    assert install.endswith("requirements-dev.txt")
    assert style == "-m ruff check ."
    start = "-m pytest -n auto --dist worksteal"
    assert tests == (f"{start} -m  -k some" if everything else f"{start} -k some")


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
    assert "got ['--config', 'c']" in again.stdout and "making" not in again.stderr


SLURM = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}


def test_slurm_installs_once_and_passes_the_arguments(checkout):
    stand_in(checkout.parent / "bin" / "srun", 'shift; for task in 1 2; do "$@"; done')
    settings = SLURM | {"SLURM_SUBMIT_DIR": str(checkout), "JTCSE_ACCELERATOR": "cuda12"}
    done = bash(checkout, "launch/slurm.sbatch", "--config", "mine.py", **settings)
    assert done.returncode == 0, done.stderr
    install, *training = calls(checkout)
    assert "pip install" in install
    assert training == ["-m jtcse_jax.train --config mine.py"] * 2


def test_slurm_fails_as_its_training_fails(checkout):
    stand_in(checkout.parent / "bin" / "srun", "exit 3")
    settings = SLURM | {"SLURM_SUBMIT_DIR": str(checkout), "JTCSE_INSTALL": "no"}
    assert bash(checkout, "launch/slurm.sbatch", **settings).returncode == 3


def test_slurm_wants_the_checkout(checkout):
    settings = SLURM | {"SLURM_SUBMIT_DIR": str(checkout.parent)}
    done = bash(checkout, "launch/slurm.sbatch", **settings)
    assert done.returncode == 1 and "call sbatch from the checkout" in done.stderr


def test_slurm_requeues_before_the_time_limit(checkout):
    stand_in(checkout.parent / "bin" / "srun", 'echo started >>"$CALLS"; sleep 2; exit 143')
    stand_in(checkout.parent / "bin" / "scontrol", 'echo "$@" >>"$CALLS"')
    settings = SLURM | {"SLURM_SUBMIT_DIR": str(checkout), "JTCSE_INSTALL": "no"}
    job = subprocess.Popen(
        ["bash", checkout / "launch/slurm.sbatch"], env=environment(checkout, settings)
    )
    deadline = time.monotonic() + 60
    while "started" not in calls(checkout) and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 143
    assert calls(checkout) == ["started", "requeue 7"]


# Plays the cloud: the workers' home folder is here, and what ssh is told is done.
GCLOUD = """printf '%s ' "${@:4:2}" "${@: -2}" >>"$CALLS"; echo >>"$CALLS"
printf '%s\\n' "$@" >>"$CALLS.all"
case "$4" in
  describe)
    [[ -z "${FAILURE:-}" ]] || { echo "ERROR: $FAILURE" >&2; exit 1; }
    echo "$STATE" ;;
  scp) cp "$5" "$HOME" ;;
  ssh)
    for argument in "$@"; do
      [[ "$argument" != --command=* ]] || (cd "$HOME" && bash -c "${argument#--command=}")
    done ;;
esac
"""


@pytest.fixture
def cloud(checkout):
    """A checkout whose `launch/local.sh` shows where it runs and what it is given."""
    stand_in(checkout.parent / "bin" / "gcloud", GCLOUD)
    stand_in(checkout.parent / "bin" / "python3", "exit 0")
    stand_in(checkout / "launch" / "local.sh", 'echo "in $PWD"; printf "<%s>" "$#" "$@"')
    (checkout / "runs").mkdir()
    (checkout.parent / "home").mkdir()
    return checkout


@pytest.mark.parametrize(
    "state, steps",
    [
        ({"STATE": "READY"}, "describe scp ssh"),
        ({"STATE": "STOPPED"}, "describe start scp ssh"),
        ({"FAILURE": "NOT_FOUND: no such node"}, "describe create scp ssh"),
        ({"STATE": "PREEMPTED"}, "describe delete create scp ssh"),
    ],
)
def test_tpu_is_made_or_reused_and_trains(cloud, state, steps):
    arguments = ["mine", "--zone", "z", "--", "--config", "a b.py", "--note", "it's $HOME"]
    done = bash(cloud, "launch/tpu_vm.sh", *arguments, **state)
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in calls(cloud)] == steps.split()
    assert all(call.endswith("--zone=z --quiet") for call in calls(cloud))
    home = cloud.parent / "home"
    assert done.stdout == f"in {home}/jtcse_jax\n<4><--config><a b.py><--note><it's $HOME>"
    assert (home / "jtcse_jax" / "requirements.txt").exists()
    assert not (home / "jtcse_jax" / ".venv").exists()
    assert not (home / "jtcse_jax" / "runs").exists()
    every_worker = Path(f"{cloud.parent}/calls.all").read_text().count("--worker=all\n")
    assert every_worker == 2


def test_tpu_without_trainer_arguments(cloud):
    done = bash(cloud, "launch/tpu_vm.sh", "mine", "--zone", "z", STATE="READY")
    assert done.stdout.endswith("/jtcse_jax\n<0>")


def test_tpu_options_reach_the_creation(cloud):
    options = ["--type", "v6e-8", "--version", "image", "--project", "p", "--spot"]
    done = bash(cloud, "launch/tpu_vm.sh", "mine", "--zone", "z", *options, FAILURE="NOT_FOUND")
    assert done.returncode == 0, done.stderr
    said = Path(f"{cloud.parent}/calls.all").read_text()
    creation = said[said.index("create") : said.index("scp")].split()
    assert {"--accelerator-type=v6e-8", "--version=image", "--project=p", "--spot"} < set(creation)


@pytest.mark.parametrize(
    "arguments, state, said",
    [
        (["--zone", "z"], {}, "NAME and --zone are needed"),
        (["mine"], {}, "NAME and --zone are needed"),
        (["mine", "--zone"], {}, "--zone needs a value"),
        (["mine", "--zone", "z", "--steps", "3"], {}, "unknown option --steps"),
        (["mine", "--zone", "z", "other"], {}, "two names, mine and other"),
        (["mine", "--zone", "z"], {"STATE": "CREATING"}, "mine is in state CREATING"),
        (["mine", "--zone", "z"], {"FAILURE": "not signed in"}, "cannot describe mine: ERROR: not"),
    ],
)
def test_tpu_refusals(cloud, arguments, state, said):
    done = bash(cloud, "launch/tpu_vm.sh", *arguments, **state)
    assert done.returncode == 1 and said in done.stderr
    assert not any(call.startswith(("create", "delete", "ssh")) for call in calls(cloud))


def test_package_reads_its_requirements_from_the_one_list():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["dependencies"]
    assert "dependencies" not in project["project"]
    dynamic = project["tool"]["setuptools"]["dynamic"]
    assert dynamic == {"dependencies": {"file": ["requirements.txt"]}}
    # A range each and no pin; setuptools understands no option lines in this file.
    lines = [line.split("#")[0].strip() for line in open(ROOT / "requirements.txt")]
    requirements = [line for line in lines if line]
    assert all(re.fullmatch(r"[a-zA-Z_-]+>=[0-9.]+", line) for line in requirements)
    assert "-r requirements.txt\n" in (ROOT / "requirements-dev.txt").read_text()


def test_ci_runs_what_a_person_runs():
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "bash launch/test.sh"


def stand_in(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)
    return path


def environment(checkout: Path, settings: dict[str, str]) -> dict[str, str]:
    """This process's environment without what steers the scripts; calls land in `calls`."""
    steering = ("JTCSE_", "SLURM_", "PYTHON", "CI")
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
