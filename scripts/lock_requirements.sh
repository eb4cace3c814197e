#!/usr/bin/env bash
# Pin what the images install, with hashes: one file of requirements/ for each value of the Dockerfile's EXTRA. What users
# install keeps the ranges of pyproject.toml.
#   scripts/lock_requirements.sh                     all files, to the newest versions
#   scripts/lock_requirements.sh cpu,otel,heif       one more
# torch is PyPI's build, which brings CUDA. With uv's variables for another index (UV_INDEX, UV_TORCH_BACKEND) a file has its build.
# Files hold no address of an index.
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
  set -- cpu,otel cpu-onnx,otel cpu,otel,convert gpu,otel gpu-cuda12,otel train,captions cpu,cli cpu,cluster,stores cpu,cli,stores
fi
for extras in "$@"; do
  named=()
  for extra in ${extras//,/ }; do
    named+=(--extra "$extra")
  done
  compile "${named[@]}" pyproject.toml >"requirements/$extras.txt"
done
