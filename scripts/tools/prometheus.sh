#!/usr/bin/env bash
# promtool of Prometheus and amtool of Alertmanager: from Debian.
set -euo pipefail
. scripts/tools/debian.bash

debian_unpack promtool /usr/bin/promtool
debian_unpack prometheus-alertmanager /usr/bin/amtool
for program in promtool amtool; do
  ".tools/bin/$program" --version | head -n 1
done
