#!/usr/bin/env bash
# Pin the images' base to the digest that its tag has now, for all platforms. Needs skopeo, and the registry.
#   scripts/pin_base.sh
set -euo pipefail
cd "$(dirname "$0")/.."
base=$(sed -n 's/^ARG BASE=\([^@]*\).*/\1/p' Dockerfile)
digest=$(skopeo inspect --raw "docker://$base" | sha256sum | cut -d ' ' -f 1)
sed -i "s#^ARG BASE=.*#ARG BASE=$base@sha256:$digest#" Dockerfile
echo "$base@sha256:$digest"
