#!/usr/bin/env bash
# Fail if a pinned package of the images has a known vulnerability, by PyPI's advisories. Needs pip-audit, and the network.
set -euo pipefail
cd "$(dirname "$0")/.."
files=()
for file in requirements/*.txt; do
  files+=(-r "$file")
done
pip-audit --disable-pip --require-hashes --strict --progress-spinner off "${files[@]}"
