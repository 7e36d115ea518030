#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains on a Cloud TPU VM: makes it or reuses it, copies the checkout to every worker, and starts
the same command on each as on a laptop. Called again, it resumes the run.

  bash launch/tpu_vm.sh NAME --zone ZONE [options] [-- trainer arguments]

  NAME              the TPU VM; made if there is none of that name
  --zone ZONE       its zone, such as us-central2-b
  --type TYPE       accelerator type of a new one (default: v5litepod-8)
  --version IMAGE   runtime version of a new one (default: v2-alpha-tpuv5-lite; it must fit TYPE)
  --project PROJECT the Google Cloud project (default: gcloud's own)
  --spot            make a new one as a spot VM: cheaper, and may be taken away at any time
  -h, --help        this text

Paths in the trainer arguments are paths on the workers, seen from the copied checkout. Where TYPE
has several workers, the workdir must be one that all of them see.
The VM goes on costing money after the run: gcloud compute tpus tpu-vm delete NAME --zone ZONE

  bash launch/tpu_vm.sh my-tpu --zone us-west4-a -- --config configs/quickstart.py
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
  make_ready
  copy_checkout
  run_on_all_workers
}

parse() {
  name="" zone="" type=v5litepod-8 version=v2-alpha-tpuv5-lite
  common=() creation=() trainer=()
  while (($#)); do
    case "$1" in
      -h | --help)
        usage
        exit
        ;;
      --zone | --type | --version | --project)
        (($# >= 2)) || fail "$1 needs a value; see bash launch/tpu_vm.sh --help"
        case "$1" in
          --zone) zone="$2" ;;
          --type) type="$2" ;;
          --version) version="$2" ;;
          --project) common+=(--project="$2") ;;
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
      -*) fail "unknown option $1; trainer arguments stand behind --" ;;
      *)
        [[ -z "$name" ]] || fail "two names, $name and $1; trainer arguments stand behind --"
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

make_ready() {
  local state
  state="$(tpu_state)"
  case "$state" in
    READY) echo "launch: reusing $name" >&2 ;;
    STOPPED) tpu start "$name" ;;
    ABSENT) create ;;
    PREEMPTED | TERMINATED)
      # What was taken away cannot be started again, only made anew.
      tpu delete "$name"
      create
      ;;
    *) fail "$name is in state $state; wait until it is READY, or delete it" ;;
  esac
}

tpu_state() {
  local answer
  if answer="$(tpu describe "$name" --format="value(state)" 2>&1)"; then
    # gcloud may warn on the same channel; the value is its last line.
    tail -n 1 <<<"$answer"
  elif [[ "$answer" == *NOT_FOUND* || "$answer" == *"not found"* ]]; then
    echo ABSENT
  else
    fail "gcloud cannot describe $name: $answer"
  fi
}

create() {
  echo "launch: making $name ($type)" >&2
  tpu create "$name" --accelerator-type="$type" --version="$version" \
    ${creation[@]+"${creation[@]}"}
}

copy_checkout() {
  local root archive
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  folder="$(mktemp -d)"
  trap 'rm -rf "$folder"' EXIT
  archive="$folder/jtcse_jax.tar.gz"
  tar -C "$root" --exclude=./.git --exclude=./.venv --exclude=./runs --exclude=__pycache__ \
    -czf "$archive" .
  tpu scp "$archive" "$name:" --worker=all
}

run_on_all_workers() {
  local arguments=""
  ((${#trainer[@]} == 0)) || printf -v arguments ' %q' "${trainer[@]}"
  # Ubuntu's python3 cannot make a virtual environment, and the one of 22.04 is too old.
  tpu ssh "$name" --worker=all --command="
    set -e
    mkdir -p jtcse_jax && tar -xzf jtcse_jax.tar.gz -C jtcse_jax && cd jtcse_jax
    if ! python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'; then
      sudo apt-get -qq update
      sudo apt-get -qq -y install python3.12-venv || sudo apt-get -qq -y install python3.11-venv
    fi
    bash launch/local.sh$arguments"
}

tpu() {
  local command="$1"
  shift
  gcloud compute tpus tpu-vm "$command" "$@" "${common[@]}"
}

main "$@"
