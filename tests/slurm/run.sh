#!/usr/bin/env bash
# Installs Slurm from Debian's packages, starts two nodes on this machine and submits
# launch/slurm.sbatch as it stands: a run on both nodes that is stopped by a signal and requeued in
# its middle has to end with the bits of a run that nothing disturbed, and bad input has to end its
# job. Needs root, in a container or not; takes a few minutes.
#   bash tests/slurm/run.sh
# Everything but the packages and the checkout's .venv goes into a temporary folder.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
folder="$(mktemp -d)"
host="$(hostname -s)"
export SLURM_CONF="$folder/slurm.conf" JAX_PLATFORMS=cpu JTCSE_ACCELERATOR=cpu
export JAX_COMPILATION_CACHE_DIR="$folder/compiled" PYTHONPATH="$root:$root/tests"
trap stop EXIT

main() {
  cd "$root"
  install
  start
  [[ "${JTCSE_INSTALL:-yes}" == no ]] || bash launch/install.sh
  export JTCSE_INSTALL=no
  .venv/bin/python - "$folder/text.txt" <<'PYTHON'
import pathlib, sys
from runs import write_text
write_text(pathlib.Path(sys.argv[1]))
PYTHON

  submit undisturbed --data.source "$folder/text.txt"
  until_true ended
  expect COMPLETED 0

  submit disturbed --data.source "$folder/text.txt"
  until_true saved 20
  # What Slurm does before the time limit: SIGTERM for the tasks, and not for the batch script.
  scancel --signal=TERM "$job"
  until_true restarted 1
  until_true saved 100
  scontrol requeue "$job"
  until_true restarted 2
  until_true ended
  expect COMPLETED 2
  (($(grep -c "^resuming from step" "$folder/disturbed.log") == 2)) || fail "it did not resume"
  grep -q "status 75; requeueing the job" "$folder/disturbed.log" || fail "the signal saved nothing"
  compare

  submit mistaken --data.source "$folder/nothing.txt"
  until_true ended
  expect FAILED 0
  grep -q "^error: .*nothing.txt" "$folder/mistaken.log" || fail "the mistake is not named"
  echo "slurm: passed in $SECONDS s; signalled, requeued and bit-identical at the end"
}

install() {
  command -v slurmctld slurmd munged srun >/dev/null && return
  apt-get -qq update
  apt-get -qq -y install --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
}

start() {
  # The nodes are named by addresses of the loopback, which resolve without an entry anywhere.
  cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=17817
SlurmUser=root
# How long a requeued job waits for its old credentials to expire.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.out
SlurmdLogFile=$folder/slurmd-%n.out
# A container has neither systemd nor cgroups of its own.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
MpiDefault=none
MailProg=/bin/true
KillWait=5
NodeName=127.0.0.1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17818 CPUs=8 Gres=gpu:1
NodeName=127.0.0.2 NodeHostname=second NodeAddr=127.0.0.2 Port=17819 CPUs=8 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
  # So that the script's own --gpus-per-node is granted; the training takes CPU devices.
  echo "NodeName=127.0.0.[1-2] Name=gpu File=/dev/null" >"$folder/gres.conf"
  # Slurm 23.11 and newer looks for cgroups unless it is told not to; older ones know no such word.
  [[ "$(slurmctld -V)" == *" 22."* ]] || echo "CgroupPlugin=disabled" >"$folder/cgroup.conf"
  mkdir "$folder/state" "$folder/spool-127.0.0.1" "$folder/spool-127.0.0.2"
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  # --force: it would refuse sockets and keys below a folder that others may write, as /tmp is.
  munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.out" --seed-file="$folder/seed"
  { slurmctld && slurmd -N 127.0.0.1 && slurmd -N 127.0.0.2; } || fail "Slurm does not start"
  until_true idle
}

idle() { [[ "$(sinfo --noheader --format='%D %t' 2>/dev/null)" == "2 idle" ]]; }

submit() { # NAME, trainer arguments
  name="$1"
  job="$(sbatch --parsable --nodes=2 --cpus-per-task=1 --output="$folder/$name.log" \
    launch/slurm.sbatch --config tests/slurm/config.py --workdir "$folder/$name" \
    --data.cache-dir "$folder/cache-$name" "${@:2}")"
  echo "slurm: job $job, $name" >&2
}

field() { scontrol show job "$job" | grep -o "\b$1=[^ ]*" | cut -d= -f2; }

ended() { [[ "$(field JobState)" =~ ^(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL)$ ]]; }

restarted() { (($(field Restarts) >= $1)); }

saved() { # whether step $1 or a later one is saved
  ! ended || fail "job $job ended before step $1 was seen"
  local step
  for step in "$folder/$name/checkpoints"/[0-9]*; do
    [[ "${step##*/}" =~ ^[0-9]+$ ]] && ((${step##*/} >= $1)) && return
  done
  return 1
}

until_true() {
  local end=$((SECONDS + 300))
  until "$@"; do
    ((SECONDS < end)) || fail "waited five minutes for: $*"
    sleep 0.2
  done
}

expect() { # state, restarts
  local found
  found="$(field JobState) $(field Restarts)"
  [[ "$found" == "$1 $2" ]] || fail "job $job: $found instead of $1 $2"
}

compare() {
  .venv/bin/python - "$folder"/{undisturbed,disturbed} <<'PYTHON'
import sys
import jax, numpy as np
from runs import saved_params
one, two = map(saved_params, sys.argv[1:])
assert jax.tree.structure(one) == jax.tree.structure(two)
same = all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))
sys.exit(not same and "slurm: the parameters differ")
PYTHON
}

fail() {
  echo "slurm: $1; the end of what was logged:" >&2
  tail -n 20 "$folder"/*.log "$folder"/*.out >&2
  exit 1
}

stop() {
  local file
  if [[ -n "${job:-}" ]] && ! ended; then
    scancel "$job"
    until_true ended
  fi
  for file in "$folder"/slurm{ctld,d-127.0.0.1,d-127.0.0.2}.pid "$folder/munged.pid"; do
    [[ ! -f "$file" ]] || kill "$(cat "$file")" || true
  done
  # The daemons write there until they have ended.
  until rm -rf "$folder" 2>/dev/null; do sleep 1; done
}

main
