#!/usr/bin/env bash
# buildah and podman, which build and run the images, and what makes a base for them: from Debian.
set -euo pipefail
. scripts/tools/debian.bash

missing=()
for name in buildah podman runc mmdebstrap strip; do
  command -v "$name" >/dev/null || missing+=("$name")
done
# What buildah and podman look up when they run, outside of PATH.
for path in /usr/lib/podman/netavark /usr/lib/podman/aardvark-dns; do
  [[ -x $path ]] || missing+=("$(basename "$path")")
done
if [[ ${#missing[@]} != 0 && $(id -u) != 0 ]]; then
  echo "${missing[*]} are missing, and tests/containers/ is skipped: it runs as root only"
  exit 0
fi
if [[ ${#missing[@]} != 0 ]]; then
  # Debian's own recommendations would bring another runtime and a user session.
  debian_install "${missing[*]} are missing: install buildah, podman, runc, netavark and mmdebstrap, then run this again" \
    buildah podman runc netavark aardvark-dns conmon catatonit nftables mmdebstrap binutils
fi
buildah --version
podman --version
# podman-compose runs deploy/compose.yaml. A Python of its own keeps it from ours.
COMPOSE=podman-compose==1.6.0
venv=.tools/compose-venv
if [[ ! -f $venv/.installed || $(<$venv/.installed) != "$COMPOSE" ]]; then
  python3 -m venv $venv
  $venv/bin/pip install -q --disable-pip-version-check "$COMPOSE"
  echo "$COMPOSE" >$venv/.installed
fi
ln -sf ../compose-venv/bin/podman-compose .tools/bin/podman-compose
