#!/usr/bin/env bash
# Grafana's own types of a dashboard, of three of its releases, and TypeScript's compiler, which holds ours to them; from npm.
set -euo pipefail
. scripts/tools/debian.bash

TYPESCRIPT_VERSION=7.0.2
SCHEMA_VERSIONS=(11.6.16 12.4.11 13.2.3)

if ! command -v npm >/dev/null; then
  debian_install "npm is missing, and it brings Grafana's types: install Node.js 20 or newer, then run this again" npm
fi
prefix=.tools/grafana
packages=("typescript@$TYPESCRIPT_VERSION")
for version in "${SCHEMA_VERSIONS[@]}"; do
  packages+=("grafana-${version%%.*}@npm:@grafana/schema@$version")
done
if [[ "$(cat "$prefix/.installed" 2>/dev/null)" != "${packages[*]}" ]]; then
  mkdir -p "$prefix"
  npm install --prefix "$prefix" --no-save --no-audit --no-fund --loglevel=error "${packages[@]}"
  echo "${packages[*]}" >"$prefix/.installed"
fi
ln -sf "../grafana/node_modules/.bin/tsc" .tools/bin/tsc
.tools/bin/tsc --version
