#!/usr/bin/env bash
# Prometheus with promtool, and Alertmanager with amtool: from Debian.
set -euo pipefail
. scripts/tools/debian.bash

debian_unpack promtool /usr/bin/promtool
debian_unpack prometheus /usr/bin/prometheus
debian_unpack prometheus-alertmanager /usr/bin/prometheus-alertmanager /usr/bin/amtool

# Debian's Alertmanager starts only where its templates lie at this place, which is root's.
templates=/usr/share/prometheus/alertmanager
if [[ ! -f $templates/default.tmpl ]]; then
  if [[ $(id -u) == 0 ]]; then
    archives=$(mktemp -d)
    (cd "$archives" && apt-get download -q prometheus-alertmanager)
    dpkg-deb --fsys-tarfile "$archives"/*.deb | tar -x -C / ".$templates/default.tmpl" ".$templates/email.tmpl"
    rm -rf "$archives"
  else
    echo "Alertmanager needs $templates: install the package prometheus-alertmanager; its tests are skipped until then" >&2
  fi
fi
for program in prometheus prometheus-alertmanager; do
  ".tools/bin/$program" --version | head -n 1
done
