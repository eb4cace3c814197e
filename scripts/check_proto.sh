#!/usr/bin/env bash
# Lint the .proto files and prove that the committed gRPC code is what they generate.
set -euo pipefail
cd "$(dirname "$0")/.."

buf=.tools/bin/buf
if [[ -x "$buf" ]]; then
  (cd proto && "../$buf" lint && "../$buf" format --diff --exit-code)
elif [[ "${CI:-}" == true ]]; then
  echo "buf is missing: run scripts/install_tools.sh" >&2
  exit 1
else
  echo "SKIPPED: buf lint and buf format, because buf is missing; scripts/install_tools.sh brings it" >&2
fi

committed=$(mktemp -d)
trap 'rm -rf "$committed"' EXIT
generated=(service/grpc/generated clients/python/tipserve_client/generated)
cp -r --parents "${generated[@]}" "$committed"
proto/generate.sh
for folder in "${generated[@]}"; do
  if ! diff -r --exclude=__pycache__ "$committed/$folder" "$folder"; then
    echo "$folder was not what proto/ generates; it is now: commit it" >&2
    exit 1
  fi
done
