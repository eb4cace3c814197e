#!/usr/bin/env bash
# nginx with njs, the proxy in front of the server: from Debian, unpacked with the libraries that they need, so that no root is
# needed and no proxy is started. `envsubst`, which fills its template, comes with it.
set -euo pipefail
. scripts/tools/debian.bash

PACKAGES=(nginx libnginx-mod-http-js libpcre2-8-0 libxml2 gettext-base)
folder=.tools/nginx

unpack_nginx() {
  if ! command -v apt-get >/dev/null; then
    echo "nginx is missing, and not to be had without apt-get: install nginx 1.26 or newer with njs, then run this again" >&2
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
}

# A program of the folder, with the libraries that were unpacked beside it.
wrap() {
  cat >".tools/bin/$1" <<WRAPPER
#!/bin/sh
folder=\$(dirname "\$(readlink -f "\$0")")/../nginx/usr
libraries=\$(echo "\$folder"/lib/*-linux-gnu*)
LD_LIBRARY_PATH="\$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" exec "\$folder/$2" "\$@"
WRAPPER
  chmod +x ".tools/bin/$1"
}

if [[ ! -x $folder/usr/sbin/nginx ]]; then
  unpack_nginx
fi
wrap nginx sbin/nginx
wrap envsubst bin/envsubst
.tools/bin/nginx -v 2>&1
