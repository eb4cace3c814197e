#!/usr/bin/env bash
# Check the project, cheapest step first.
#   scripts/check.sh         static checks and the fast tests: run it before every commit
#   scripts/check.sh --all   every test, as CI runs it
#   scripts/check.sh --promises   what callers and operators rely on, asked of started servers
# Other arguments go to pytest: scripts/check.sh -k batching
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -z "${VIRTUAL_ENV:-}" && -x .venv/bin/python ]]; then
  PATH="$PWD/.venv/bin:$PATH"
fi
if [[ "${1:-}" == --promises ]]; then
  shift
  exec python -m pytest tests/promises "$@"
fi
is_whole=false
if [[ "${1:-}" == --all ]]; then
  is_whole=true
  shift
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
step "synchronous client: generated code"
python clients/python/generate_sync.py --check
step "documentation: generated page, links, site"
scripts/check_docs.sh
if $is_whole; then
  step "installations: dependencies at their minimum, newer Pythons"
  scripts/check_installations.sh
fi
step "types"
mypy service model training tipserve_cli tests benchmarks connectors clients/python/tipserve_client
status=0
step "fast tests, on two cores"
python -m pytest -m "not slow" -n 2 "$@" || status=$?
if $is_whole; then
  timed=(--durations 20 --durations-min 10)
  step "slow tests, on two cores"
  # A file's tests share what they start.
  python -m pytest -m "slow and not alone" -n 2 --dist loadfile "${timed[@]}" "$@" || status=$?
  # They measure memory and time, or fill both cores themselves.
  step "slow tests, one after the other"
  python -m pytest -m "slow and alone" "${timed[@]}" "$@" || status=$?
fi
exit $status
