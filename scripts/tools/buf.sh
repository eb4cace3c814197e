#!/usr/bin/env bash
# buf, which lints, compares and calls the proto files; from npm.
set -euo pipefail
. scripts/tools/debian.bash

BUF_VERSION=1.75.0

if ! command -v npm >/dev/null; then
  debian_install "npm is missing, and it brings buf: install Node.js 20 or newer, then run this again" npm
fi
buf=.tools/node_modules/.bin/buf
if [[ ! -x "$buf" || "$("$buf" --version)" != "$BUF_VERSION" ]]; then
  npm install --prefix .tools --no-save --no-audit --no-fund --loglevel=error "@bufbuild/buf@$BUF_VERSION"
fi
ln -sf "../node_modules/.bin/buf" .tools/bin/buf
echo "buf $("$buf" --version)"
