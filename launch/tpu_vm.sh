#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains on a Cloud TPU VM: creates or reuses the VM, copies the checkout to every worker, and starts
the same command on each as on a laptop. If the VM is preempted, the script creates it again and
resumes the run, until the training is finished or its input is bad. The same call later resumes the
run too.

  bash launch/tpu_vm.sh NAME --zone ZONE [options] [-- trainer arguments]

  NAME              the TPU VM; created if there is none of that name
  --zone ZONE       its zone, such as us-west4-a
  --type TYPE       accelerator type of a new VM (default: v5litepod-8)
  --version IMAGE   runtime version of a new VM (default: v2-alpha-tpuv5-lite; it must fit TYPE)
  --project PROJECT the Google Cloud project (default: gcloud's own)
  --spot            create a new VM as a spot VM: cheaper, but it may be preempted at any time
  --pause SECONDS   pause between attempts (default: 30)
  -h, --help        this text

Paths in the trainer arguments are paths on the workers, relative to the copied checkout. A VM that
is created again has an empty disk, and several workers have one disk each: then put the workdir on
a disk that outlasts the VM and that all workers see. JTCSE_COMMAND=preflight checks the workers
instead of training; JTCSE_COMMAND=pipeline trains all stages of a recipe. No other settings of this
machine (HF_TOKEN, WANDB_API_KEY) are copied.
The VM still costs money after the run: gcloud compute tpus tpu-vm delete NAME --zone ZONE

  bash launch/tpu_vm.sh my-tpu --zone us-west4-a -- --config configs/smoke.py
TEXT
}

fail() {
  echo "launch: $1" >&2
  exit 1
}

main() {
  parse "$@"
  command -v gcloud >/dev/null ||
    fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
  pack_checkout
  # An interrupt ends the loop, whatever gcloud does with it.
  trap 'exit 130' INT
  make_ready || fail "$name was not created; see gcloud's message above"
  local status crashes=0 restarts=0
  while true; do
    status=0
    train || status=$?
    # 0: finished; 2: bad input, with which another start would fail too.
    [[ "$status" != [02] && "${JTCSE_COMMAND:-}" != preflight ]] || exit "$status"
    echo "launch: it ended with status $status; checking $name and starting again" >&2
    sleep "$pause"
    # If no spot machine is free, or there is no network, creating one fails; try until it works.
    until make_ready; do sleep "$pause"; done
    ((++restarts < 100)) || fail "the training was started a hundred times; see its output"
    # 75: saved after a signal; 255: ssh lost the connection. Other failures on a working VM are
    # crashes, and may repeat.
    if [[ "$state" == READY && "$status" != 75 && "$status" != 255 ]]; then
      ((++crashes < 10)) || fail "the training failed ten times on a working VM; see its output"
    fi
  done
}

parse() {
  name="" zone="" type=v5litepod-8 version=v2-alpha-tpuv5-lite pause=30
  common=() creation=() trainer=()
  while (($#)); do
    case "$1" in
      -h | --help)
        usage
        exit
        ;;
      --zone | --type | --version | --project | --pause)
        (($# >= 2)) || fail "$1 needs a value; see bash launch/tpu_vm.sh --help"
        case "$1" in
          --zone) zone="$2" ;;
          --type) type="$2" ;;
          --version) version="$2" ;;
          --project) common+=(--project="$2") ;;
          --pause) pause="$2" ;;
        esac
        shift 2
        ;;
      --spot)
        creation+=(--spot)
        shift
        ;;
      --)
        shift
        trainer=("$@")
        break
        ;;
      -*) fail "unknown option $1; give trainer arguments after --" ;;
      *)
        [[ -z "$name" ]] || fail "two names, $name and $1; give trainer arguments after --"
        name="$1"
        shift
        ;;
    esac
  done
  if [[ -z "$name" || -z "$zone" ]]; then
    usage >&2
    fail "NAME and --zone are needed"
  fi
  common+=(--zone="$zone" --quiet)
}

pack_checkout() {
  local root
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  folder="$(mktemp -d)"
  trap 'rm -rf "$folder"' EXIT
  tar -C "$root" --exclude=./.git --exclude=./.venv --exclude=./runs --exclude=__pycache__ \
    -czf "$folder/jtcse_jax.tar.gz" .
}

# Fails if gcloud could not do it.
make_ready() {
  look || return 1
  case "$state" in
    READY) echo "launch: reusing $name" >&2 ;;
    STOPPED) tpu start "$name" ;;
    ABSENT) create ;;
    PREEMPTED | TERMINATED)
      # A preempted VM cannot be started again, only created again.
      tpu delete "$name" && create
      ;;
  esac
}

# Sets `state`, once it is not a state of transition.
look() {
  local looks=0
  while true; do
    state="$(tpu_state)" || return 1
    case "$state" in
      READY | STOPPED | ABSENT | PREEMPTED | TERMINATED) return ;;
    esac
    if ((++looks == 20)); then
      echo "launch: $name stays in state $state; wait until it is READY, or delete it" >&2
      return 1
    fi
    echo "launch: $name is in state $state; waiting" >&2
    sleep "$pause"
  done
}

tpu_state() {
  local answer
  if answer="$(tpu describe "$name" --format="value(state)" 2>&1)"; then
    # gcloud may print warnings to the same stream; the value is the last line.
    tail -n 1 <<<"$answer"
  elif [[ "$answer" == *NOT_FOUND* || "$answer" == *"not found"* ]]; then
    echo ABSENT
  else
    fail "gcloud cannot describe $name: $answer"
  fi
}

create() {
  echo "launch: creating $name ($type)" >&2
  tpu create "$name" --accelerator-type="$type" --version="$version" \
    ${creation[@]+"${creation[@]}"}
}

train() {
  local arguments=""
  ((${#trainer[@]} == 0)) || printf -v arguments ' %q' "${trainer[@]}"
  tpu scp "$folder/jtcse_jax.tar.gz" "$name:" --worker=all || return 1
  # Ubuntu's python3 cannot create a virtual environment, and that of 22.04 is too old. Failures
  # before the training have status 1, so that status 2 comes from the trainer.
  tpu ssh "$name" --worker=all --command="
    prepare() {
      mkdir -p jtcse_jax && tar -xzf jtcse_jax.tar.gz -C jtcse_jax && cd jtcse_jax || return 1
      python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' && return
      sudo apt-get -qq update
      sudo apt-get -qq -y install python3.12-venv || sudo apt-get -qq -y install python3.11-venv
    }
    # If only the connection broke, the earlier training still runs: it saves and ends.
    end_earlier() {
      local earlier
      earlier=\$(cat trainer.pid 2>/dev/null) || return 0
      grep -qE 'jtcse_jax|launch/local' \"/proc/\$earlier/cmdline\" 2>/dev/null || return 0
      kill \"\$earlier\"
      timeout 120 tail --pid=\"\$earlier\" -f /dev/null
    }
    prepare || exit 1
    end_earlier
    echo \$\$ >trainer.pid
    export JTCSE_COMMAND=$(printf %q "${JTCSE_COMMAND:-train}")
    exec bash launch/local.sh$arguments"
}

tpu() {
  local command="$1"
  shift
  gcloud compute tpus tpu-vm "$command" "$@" "${common[@]}"
}

main "$@"
