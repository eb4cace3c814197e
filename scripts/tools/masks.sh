#!/usr/bin/env bash
# Libraries that take masks, which clients/python/README.md shows and tests/clients/python/test_other_libraries.py runs.
# FiftyOne brings a database and a hundred packages, so they have a Python of their own.
set -euo pipefail

LIBRARIES=(fiftyone==1.22.1 supervision==0.31.2 googleapis-common-protos grpcio httpx2) # the last three are our client's
venv=.tools/masks-venv

if [[ ! -f $venv/.installed || "$(<$venv/.installed)" != "${LIBRARIES[*]}" ]]; then
  python3 -m venv --clear $venv
  $venv/bin/python -m pip install -q "${LIBRARIES[@]}"
  echo "${LIBRARIES[*]}" >$venv/.installed
fi
echo "libraries that take masks"
