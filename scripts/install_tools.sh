#!/usr/bin/env bash
# Install the command-line tools that no Python package brings into .tools/ (ignored by git), each by its script in tools/.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p .tools/bin
for script in scripts/tools/*.sh; do
  "$script"
done
