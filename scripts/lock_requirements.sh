#!/usr/bin/env bash
# Pin what the images install, with hashes: one file of requirements/ for each value of the Dockerfile's EXTRA, and one for
# the build's tools. What users install keeps the ranges of pyproject.toml.
#   scripts/lock_requirements.sh                     all files, to the newest versions
#   scripts/lock_requirements.sh cpu,otel,heif       one more
# torch and torchvision are in no file, nor what only CUDA builds of torch bring: which build is right depends on the index, and
# the Dockerfile installs them by their range, after the rest. Files hold no address of an index.
set -euo pipefail
cd "$(dirname "$0")/.."
options=(--universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --quiet --upgrade)
header="# Written by scripts/lock_requirements.sh"

# Compile the requirements in a file to stdout; further arguments are options of uv.
compile() {
  echo "$header"
  uv pip compile "${options[@]}" --no-header "$@"
}

if [[ $# == 0 ]]; then
  set -- cpu,otel cpu,otel,convert gpu,otel gpu-cuda12,otel train,captions cpu,cli cpu,cluster,stores cpu,cli,stores
  compile - <<<'cyclonedx-bom>=7.3,<8' >requirements/tools.txt
fi
for extras in "$@"; do
  named=()
  for extra in ${extras//,/ }; do
    named+=(--extra "$extra")
  done
  # Without torch, CUDA's packages are our own.
  found=$(compile "${named[@]}" pyproject.toml)
  if [[ $found == *$'\n'torch==* ]]; then
    for package in $(grep -oE '^(torch|torchvision|triton|(cuda|nvidia)-[a-z0-9-]+)==' <<<"$found" | tr -d =); do
      named+=(--no-emit-package "$package")
    done
    found=$(compile "${named[@]}" pyproject.toml)
  fi
  echo "$found" >"requirements/$extras.txt"
done
