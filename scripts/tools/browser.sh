#!/usr/bin/env bash
# Chromium, in which the web page is tested, from Debian; and axe, which judges its accessibility, from npm.
set -euo pipefail
. scripts/tools/debian.bash

AXE_VERSION=4.14.1

if ! command -v chromium >/dev/null; then
  debian_install "chromium is missing: install Chromium and a font, then run this again" chromium fonts-dejavu-core
fi
if ! command -v npm >/dev/null; then
  debian_install "npm is missing, and it brings axe: install Node.js 20 or newer, then run this again" npm
fi
axe=.tools/axe/node_modules/axe-core/package.json
if [[ ! -f $axe ]] || ! grep -q "\"version\": \"$AXE_VERSION\"" $axe; then
  mkdir -p .tools/axe
  npm install --prefix .tools/axe --no-save --no-audit --no-fund --loglevel=error "axe-core@$AXE_VERSION"
fi
echo "chromium $(chromium --version | cut -d' ' -f2), axe $AXE_VERSION"
