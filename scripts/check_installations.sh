#!/usr/bin/env bash
# The package installs and serves: on this Python with every direct dependency at its declared minimum, and on every newer
# Python of this machine with the newest versions. The server starts and answers every route, the client and the commands.
# A minimum below what the code needs, or a Python that a dependency cannot run on, breaks installations that no other test sees.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python -m venv "$folder/tools"
"$folder/tools/bin/pip" install --quiet --disable-pip-version-check uv
uv=$folder/tools/bin/uv
# A copy of the tree, so that the build leaves nothing behind.
mkdir "$folder/source"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --no-dereference --parents -t "$folder/source"
program=$PWD/scripts/request_every_route.py
this=$(command -v python)
cd "$folder"
export UV_PYTHON_DOWNLOADS=never

# check PYTHON RESOLUTION: install into a new environment, and request everything.
check() {
  local venv=venv-$2-${1//\//-}
  "$uv" venv --quiet --python "$1" "$venv"
  "$uv" pip install --quiet --python "$venv/bin/python" --resolution "$2" "$folder/source[cpu,cli]"
  echo "$("$venv/bin/python" --version), versions of dependencies: $2"
  env -u PYTHONPATH "$venv/bin/python" "$program"
}

check "$this" lowest-direct
is_only=1
for minor in 12 13 14; do # those of the classifiers
  [[ $minor -gt $(python -c 'import sys; print(sys.version_info.minor)') ]] || continue
  newer=$("$uv" python find --no-project "3.$minor" 2>/dev/null) || continue
  is_only=
  check "$newer" highest
done
[[ -z $is_only ]] || echo "skipped: this machine has no newer Python than $(python --version)"
