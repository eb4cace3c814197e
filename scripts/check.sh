#!/usr/bin/env bash
# Every check of the project, cheapest first; the same at the desk and in CI.
# Arguments go to pytest: scripts/check.sh -k batching
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -z "${VIRTUAL_ENV:-}" && -x .venv/bin/python ]]; then
  PATH="$PWD/.venv/bin:$PATH"
fi

step() { printf '\n== %s\n' "$1"; }

step "format"
ruff format --check .
step "lint"
ruff check .
hadolint Dockerfile
step "import contracts"
lint-imports
step "proto: lint, format, generated code"
scripts/check_proto.sh
step "types"
mypy service model training tests benchmarks clients/python/tipserve_client
step "tests"
python -m pytest "$@"
