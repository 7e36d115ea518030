#!/usr/bin/env bash
# Creates .venv in the checkout (or reuses it) and installs a requirements file into it, with the
# jax for this machine's accelerator.
#   bash launch/install.sh [requirements.txt]
# PYTHON=python3.12 chooses the interpreter. JTCSE_ACCELERATOR=cpu, cuda12, cuda13 or tpu chooses
# the jax, if this machine differs from the one that will run (a login node).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
requirements="$root/${1:-requirements.txt}"
venv="$root/.venv"

main() {
  # Without a lock, two jobs that start at the same time from one checkout would conflict.
  if command -v flock >/dev/null; then
    exec 9>"$root/.venv.lock"
    flock 9
  fi
  if ! is_recent "$venv/bin/python"; then
    make_venv
  elif ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$venv/bin/python" -m ensurepip >/dev/null ||
      fail "$venv has no pip; remove that folder and start again"
  fi
  local accelerator="${JTCSE_ACCELERATOR:-$(bash "$root/launch/accelerator.sh")}"
  local packages=(-r "$requirements")
  case "$accelerator" in
    cpu) ;;
    cuda12 | cuda13 | tpu) packages+=("jax[$accelerator]") ;;
    *) fail "JTCSE_ACCELERATOR is '$accelerator'; choose cpu, cuda12, cuda13 or tpu" ;;
  esac
  echo "launch: installing ${requirements##*/} for $accelerator into $venv" >&2
  # Byte-compiling every file doubles the time; imports compile the files they need.
  "$venv/bin/python" -m pip install --quiet --no-compile "${packages[@]}" ||
    fail "pip could not install them; see its message above"
}

make_venv() {
  local python
  python="$(find_python)" ||
    fail "Python 3.11 or newer is needed; install it, or give its path: PYTHON=/path/to/python3"
  echo "launch: creating $venv with $("$python" --version)" >&2
  "$python" -m venv --clear "$venv" ||
    fail "$python cannot create a virtual environment (Debian, Ubuntu: apt install python3-venv)"
  # A newer pip resolves and downloads in half the time; an old one works too.
  "$venv/bin/python" -m pip install --quiet --upgrade pip ||
    echo "launch: pip could not be upgraded; continuing with the installed one" >&2
}

find_python() {
  local candidate candidates=(python3 python3.13 python3.12 python3.11)
  [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if is_recent "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

is_recent() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

fail() {
  echo "launch: $1" >&2
  exit 1
}

main
