#!/usr/bin/env bash
# Installs what is missing and trains on this machine; a second start resumes.
#   bash launch/local.sh [trainer arguments]       without --config: configs/quickstart.py
# JTCSE_INSTALL=no starts at once, where `bash launch/install.sh` has been run before.
# JTCSE_COMMAND=pipeline, encode or preflight runs that command with the arguments instead.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

command="${JTCSE_COMMAND:-train}"
config=()
[[ "$command" != train ]] || config=(--config "$root/configs/quickstart.py")
for argument in "$@"; do
  case "$argument" in
    --config | --config=*) config=() ;;
  esac
done

[[ "${JTCSE_INSTALL:-yes}" == no ]] || bash "$root/launch/install.sh"
# No change of folder: a relative path in an argument is the caller's.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# A step on a CPU takes gigabytes from malloc and gives them back: in huge pages that is a fifth
# faster (docs/benchmarks.md). The C library reads this at the start of a process alone.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
exec "$root/.venv/bin/python" -m "jtcse_jax.$command" ${config[@]+"${config[@]}"} "$@"
