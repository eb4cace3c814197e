#!/usr/bin/env bash
# Every direct dependency at its declared minimum: the server starts and answers every route, the client and the commands.
# A minimum below what the code needs breaks installations that no other test sees.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uv
# A copy of the tree, so that the build leaves nothing behind.
mkdir "$folder/source"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$folder/source"
VIRTUAL_ENV="$folder/venv" "$folder/venv/bin/uv" pip install --quiet --resolution lowest-direct "$folder/source[cpu,cli]"
program=$PWD/scripts/request_every_route.py
cd "$folder"
env -u PYTHONPATH "$folder/venv/bin/python" "$program"
