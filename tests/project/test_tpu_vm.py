"""The script for Cloud TPU VMs, with a stand-in that plays gcloud: it never ran on the real one."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from checkouts import bash, calls, make_checkout, stand_in

# Plays the cloud: the workers' home folder is here, and what ssh is told is done. In the home,
# `states` holds what describe finds, in turn, `looks` whether it finds anything, and
# COMMAND.statuses how a command ends.
GCLOUD = """printf '%s ' "${@:4:2}" "${@: -2}" >>"$CALLS"; echo >>"$CALLS"
printf '%s\\n' "$@" >>"$CALLS.all"
next() { head -n 1 "$HOME/$1" && sed -i 1d "$HOME/$1"; }
case "$4" in
  describe)
    [[ -z "${FAILURE:-}" ]] || { echo "ERROR: $FAILURE" >&2; exit 1; }
    [[ ! -s "$HOME/looks" ]] || [[ "$(next looks)" == found ]] || exit 1
    if [[ -s "$HOME/states" ]]; then next states; else echo "$STATE"; fi ;;
  scp) cp "$5" "$HOME" ;;
  ssh)
    for argument in "$@"; do
      [[ "$argument" != --command=* ]] || command="${argument#--command=}"
    done
    cd "$HOME" && bash -c "$command" ;;
esac
status=$?
[[ ! -s "$HOME/$4.statuses" ]] || status="$(next "$4.statuses")"
exit "$status"
"""


@pytest.fixture
def cloud(tmp_path):
    """A checkout whose `launch/local.sh` shows where it runs and what it is given."""
    checkout = make_checkout(tmp_path)
    stand_in(checkout.parent / "bin" / "gcloud", GCLOUD)
    stand_in(checkout.parent / "bin" / "python3", "exit 0")
    local = 'echo "in $PWD"; printf "<%s>" "$#" "$@"; [[ $JTCSE_COMMAND == train ]]'
    stand_in(checkout / "launch" / "local.sh", local)
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


@pytest.mark.parametrize(
    "states, statuses, steps, status",
    [
        ("READY", "2", "describe scp ssh", 2),
        # Taken away: made anew.
        ("READY PREEMPTED", "255", "describe scp ssh describe delete create scp ssh", 0),
        ("READY STOPPING PREEMPTED", "1", "describe scp ssh describe describe delete create", 0),
        # Saved after a signal, as often as that happens.
        ("READY", "75 " * 12, "describe scp ssh" + " describe scp ssh" * 12, 0),
        # A connection that broke is no crash.
        ("READY", "255 " * 12, "describe scp ssh" + " describe scp ssh" * 12, 0),
        ("READY", "1 137 1", "describe scp ssh" + " describe scp ssh" * 3, 0),
        ("READY", "1 " * 10, " describe scp ssh" * 10 + " describe", 1),
    ],
)
def test_tpu_goes_on_until_it_has_finished(cloud, states, statuses, steps, status):
    home = cloud.parent / "home"
    (home / "states").write_text(states.replace(" ", "\n") + "\n")
    (home / "ssh.statuses").write_text("\n".join(statuses.split()) + "\n")
    done = bash(cloud, "launch/tpu_vm.sh", "mine", "--zone", "z", "--pause", "0", STATE="READY")
    assert done.returncode == status, done.stderr
    seen = " ".join(call.split()[0] for call in calls(cloud))
    assert seen.startswith(steps.strip())
    assert status or seen.endswith("scp ssh")


def test_tpu_that_cannot_be_made_at_first(cloud):
    (cloud.parent / "home" / "create.statuses").write_text("1\n")
    arguments = ["mine", "--zone", "z", "--pause", "0"]
    done = bash(cloud, "launch/tpu_vm.sh", *arguments, STATE="PREEMPTED")
    assert done.returncode == 1 and "mine was not created" in done.stderr
    assert calls(cloud)[-1].startswith("create")


def test_tpu_is_made_anew_as_soon_as_there_is_one(cloud):
    home = cloud.parent / "home"
    (home / "states").write_text("READY\n")
    (home / "ssh.statuses").write_text("255\n")
    (home / "create.statuses").write_text("1\n1\n")
    arguments = ["mine", "--zone", "z", "--pause", "0"]
    done = bash(cloud, "launch/tpu_vm.sh", *arguments, STATE="PREEMPTED")
    assert done.returncode == 0, done.stderr
    steps = [call.split()[0] for call in calls(cloud)]
    assert steps.count("create") == 3 and steps.count("ssh") == 2


def test_tpu_is_looked_for_until_the_network_is_back(cloud):
    home = cloud.parent / "home"
    (home / "looks").write_text("found\nno network\nno network\nfound\n")
    (home / "ssh.statuses").write_text("255\n")
    arguments = ["mine", "--zone", "z", "--pause", "0"]
    done = bash(cloud, "launch/tpu_vm.sh", *arguments, STATE="READY")
    assert done.returncode == 0, done.stderr
    steps = " ".join(call.split()[0] for call in calls(cloud))
    assert steps == "describe scp ssh" + " describe" * 3 + " scp ssh"


def test_training_that_outlived_its_connection_ends_before_the_next(cloud):
    earlier = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "jtcse_jax"])
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    reaped = threading.Thread(target=earlier.wait)
    reaped.start()
    folder = cloud.parent / "home" / "jtcse_jax"
    folder.mkdir()
    try:
        for process in (other, earlier):  # a number that is another's by now, and the trainer's
            (folder / "trainer.pid").write_text(f"{process.pid}\n")
            done = bash(cloud, "launch/tpu_vm.sh", "mine", "--zone", "z", STATE="READY")
            assert done.returncode == 0, done.stderr
        reaped.join(timeout=60)
        assert (earlier.poll(), other.poll()) == (-signal.SIGTERM, None)
        assert int((folder / "trainer.pid").read_text()) not in (earlier.pid, other.pid)
    finally:
        earlier.kill()
        other.kill()
        other.wait()


def test_tpu_preflight_looks_once(cloud):
    (cloud.parent / "home" / "ssh.statuses").write_text("75\n")
    settings = {"STATE": "READY", "JTCSE_COMMAND": "preflight"}
    done = bash(cloud, "launch/tpu_vm.sh", "mine", "--zone", "z", "--pause", "0", **settings)
    assert done.returncode == 75
    assert [call.split()[0] for call in calls(cloud)] == ["describe", "scp", "ssh"]


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
        (
            ["mine", "--zone", "z", "--pause", "0"],
            {"STATE": "CREATING"},
            "mine stays in state CREATING",
        ),
        (["mine", "--zone", "z"], {"FAILURE": "not signed in"}, "cannot describe mine: ERROR: not"),
    ],
)
def test_tpu_refusals(cloud, arguments, state, said):
    done = bash(cloud, "launch/tpu_vm.sh", *arguments, **state)
    assert done.returncode == 1 and said in done.stderr
    assert not any(call.startswith(("create", "delete", "ssh")) for call in calls(cloud))
