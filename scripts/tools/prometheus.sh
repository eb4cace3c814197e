#!/usr/bin/env bash
# Prometheus with promtool, and Alertmanager: from Debian.
set -euo pipefail
. scripts/tools/debian.bash

debian_unpack promtool /usr/bin/promtool
.tools/bin/promtool --version | head -n 1
