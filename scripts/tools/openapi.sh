#!/usr/bin/env bash
# Generators of clients from the OpenAPI document: for TypeScript from npm, for Python from PyPI. Each lies apart from all else.
set -euo pipefail
. scripts/tools/debian.bash

TYPESCRIPT=(openapi-typescript@7.13.0 openapi-fetch@0.17.0 typescript@5.9.3)
PYTHON=openapi-python-client==0.29.1

if ! command -v npm >/dev/null; then
  debian_install "npm is missing, and it brings openapi-typescript: install Node.js 20 or newer, then run this again" npm
fi
prefix=.tools/openapi
if [[ "$(cat $prefix/.installed 2>/dev/null)" != "${TYPESCRIPT[*]}" ]]; then
  mkdir -p $prefix
  npm install --prefix $prefix --no-save --no-audit --no-fund --loglevel=error "${TYPESCRIPT[@]}"
  echo "${TYPESCRIPT[*]}" >$prefix/.installed
fi
venv=.tools/openapi-venv
if [[ "$(cat $venv/.installed 2>/dev/null)" != "$PYTHON" ]]; then
  python3 -m venv $venv
  $venv/bin/python -m pip install -q --disable-pip-version-check "$PYTHON"
  echo "$PYTHON" >$venv/.installed
fi
mkdir -p .tools/bin
ln -sf ../openapi-venv/bin/openapi-python-client .tools/bin/openapi-python-client
echo "${TYPESCRIPT[*]} $PYTHON"
