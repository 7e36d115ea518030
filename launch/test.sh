#!/usr/bin/env bash
# Installs the development requirements, then checks style and types and runs the tests.
#   bash launch/test.sh [pytest arguments]       with CI=true also the slow tests
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Container images often set this: each of many processes would compile all that it imports again.
unset PYTHONDONTWRITEBYTECODE
# The tests run on simulated CPU devices on every machine.
JTCSE_ACCELERATOR="${JTCSE_ACCELERATOR:-cpu}" bash launch/install.sh requirements-dev.txt
slow=()
if [[ "${CI:-}" == true ]]; then
  slow=(-m "" --durations=30)
fi
.venv/bin/python -m ruff check .
.venv/bin/lint-imports --no-cache
.venv/bin/basedpyright
exec .venv/bin/python -m pytest -n auto --dist worksteal ${slow[@]+"${slow[@]}"} "$@"
