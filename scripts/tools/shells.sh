#!/usr/bin/env bash
# zsh and fish, in which the completion of the command line is tested, from Debian.
set -euo pipefail
. scripts/tools/debian.bash

for shell in zsh fish; do
  command -v $shell >/dev/null || debian_install "$shell is missing: install it, then run this again" $shell
  $shell --version
done
