#!/usr/bin/env bash
# HAProxy, behind which replicas are replaced under load: from Debian, unpacked with the libraries that it needs, so that
# no root is needed and no proxy is started.
set -euo pipefail
. scripts/tools/debian.bash

PACKAGES=(haproxy liblua5.4-0 libopentracing-c-wrapper0t64 libopentracing1 libjemalloc2 libpcre2-8-0)
folder=.tools/haproxy

unpack_haproxy() {
  if ! command -v apt-get >/dev/null; then
    echo "haproxy is missing, and not to be had without apt-get: install HAProxy 2.4 or newer, then run this again" >&2
    return 1
  fi
  local archives archive
  archives=$(mktemp -d)
  (
    cd "$archives"
    apt-get download -q "${PACKAGES[@]}" >/dev/null 2>&1 ||
      { apt-get update -q >/dev/null && apt-get download -q "${PACKAGES[@]}" >/dev/null; }
  )
  rm -rf "$folder"
  mkdir -p "$folder"
  for archive in "$archives"/*.deb; do
    dpkg-deb --fsys-tarfile "$archive" | tar -x -C "$folder"
  done
  rm -rf "$archives"
  rm -f .tools/bin/haproxy
  cat >.tools/bin/haproxy <<'END'
#!/bin/sh
# The program of a Debian package, with the libraries that were unpacked beside it.
folder=$(dirname "$(readlink -f "$0")")/../haproxy/usr
libraries=$(echo "$folder"/lib/*-linux-gnu*)
LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "$folder/sbin/haproxy" "$@"
END
  chmod +x .tools/bin/haproxy
}

if ! .tools/bin/haproxy -v >/dev/null 2>&1; then
  if command -v haproxy >/dev/null; then
    ln -sf "$(command -v haproxy)" .tools/bin/haproxy
  else
    unpack_haproxy
  fi
fi
# Its first line; `head` would end it by SIGPIPE while it writes the others.
version=$(.tools/bin/haproxy -v)
echo "${version%%$'\n'*}"
