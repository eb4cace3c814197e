#!/usr/bin/env bash
# Install the command-line tools that no Python package brings, buf and promtool, into .tools/ (ignored by git).
set -euo pipefail
cd "$(dirname "$0")/.."

BUF_VERSION=1.75.0

if ! command -v npm >/dev/null; then
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "npm is missing, and it brings buf: install Node.js 20 or newer, then run this again" >&2
    exit 1
  fi
  apt-get update -q
  apt-get install -y -q --no-install-recommends npm
fi

buf=.tools/node_modules/.bin/buf
if [[ ! -x "$buf" || "$("$buf" --version)" != "$BUF_VERSION" ]]; then
  npm install --prefix .tools --no-save --no-audit --no-fund --loglevel=error "@bufbuild/buf@$BUF_VERSION"
fi
echo "buf $("$buf" --version)"

# Debian's package is unpacked and not installed, so that no root is needed and no service appears.
promtool=.tools/promtool
if [[ ! -x "$promtool" ]]; then
  if command -v promtool >/dev/null; then
    ln -sf "$(command -v promtool)" "$promtool"
  elif command -v apt-get >/dev/null; then
    archives=$(mktemp -d)
    trap 'rm -rf "$archives"' EXIT
    (cd "$archives" && { apt-get download -q promtool || { apt-get update -q && apt-get download -q promtool; }; })
    dpkg-deb --fsys-tarfile "$archives"/promtool_*.deb | tar -x -C "$archives" ./usr/bin/promtool
    mv "$archives/usr/bin/promtool" "$promtool"
  else
    echo "promtool is missing, and it is not to be had without apt-get: install Prometheus, then run this again" >&2
    exit 1
  fi
fi
"$promtool" --version | head -n 1
