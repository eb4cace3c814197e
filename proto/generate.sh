#!/usr/bin/env bash
# Generate service/grpc/generated, and the Python client's stubs, from proto/. The generator's version is pinned in pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."

python=python3
if [[ -z "${VIRTUAL_ENV:-}" && -x .venv/bin/python ]]; then
  python=.venv/bin/python
fi
target=service/grpc/generated
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

protoc=("$python" -m grpc_tools.protoc -Iproto)
"${protoc[@]}" --python_out="$build" --pyi_out="$build" proto/tipserve/v1/*.proto proto/inference/*.proto
"${protoc[@]}" --grpc_python_out="$build" proto/tipserve/v1/*_service.proto proto/inference/*.proto
# The files keep the names under which they are registered (tipserve/v1/...), so that a client's own stubs can live
# in the same process; only the imports between them are made relative.
sed -i 's/^from tipserve\.v1 import/from . import/' "$build"/tipserve/v1/*.py "$build"/tipserve/v1/*.pyi
# Every client of the Open Inference Protocol registers the same names from a file of its own, so that ours has a pool
# of its own too: one process may hold both.
sed -i 's/^from inference import/from . import/' "$build"/inference/*.py
sed -i 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' "$build"/inference/*_pb2.py

rm -rf "$target"
mkdir -p "$target"
cp "$build"/tipserve/v1/* "$build"/inference/* "$target"
printf '"""Code generated from proto/ by proto/generate.sh. Never edited by hand."""\n' > "$target/__init__.py"

# The client speaks tipserve.v1 only.
client=clients/python/tipserve_client/generated
rm -rf "$client"
mkdir -p "$client"
cp "$build"/tipserve/v1/* "$target/__init__.py" "$client"
