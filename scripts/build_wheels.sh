#!/usr/bin/env bash
# Build the wheels of the service and of the client into a folder.
#   scripts/build_wheels.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
for project in . clients/python; do
  python -m pip wheel --quiet --no-deps --wheel-dir "$1" "./$project"
done
