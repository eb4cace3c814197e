#!/usr/bin/env bash
# strace, by which a test watches the connections of whole programs, also those of native libraries: from Debian.
set -euo pipefail
. scripts/tools/debian.bash

command -v strace >/dev/null || debian_install "strace is missing: install it, then run this again" strace
strace --version | sed -n 1p
