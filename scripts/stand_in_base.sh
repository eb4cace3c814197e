#!/usr/bin/env bash
# Make a stand-in of python:3.11-slim where no registry can be reached: a slim Debian with this machine's Python.
#   scripts/stand_in_base.sh NAME [PYTHON]      as root; the image stays, and a second call finds it
set -euo pipefail
name=$1
python=${2:-python3}
suite=trixie
# What python:3.11-slim has beside a minimal Debian: these, and the libraries that Python's own modules load.
packages=ca-certificates,netbase,tzdata,zlib1g,libbz2-1.0,libffi8,liblzma5,libncursesw6,libreadline8t64,libsqlite3-0,libssl3t64,libuuid1

if buildah inspect --type image "$name" >/dev/null 2>&1; then
  exit 0
fi
work=$(mktemp -d)
container=
clean_up() {
  [[ -z $container ]] || buildah rm "$container" >/dev/null
  rm -rf "$work"
}
trap clean_up EXIT

# Without what Debian's slim images leave out as well.
mmdebstrap --quiet --variant=minbase --include="$packages" \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/groff/*' \
  --dpkgopt='path-exclude=/usr/share/lintian/*' --dpkgopt='path-exclude=/usr/share/linda/*' \
  "$suite" "$work/debian.tar"

# The interpreter, its library and the standard library; no tests, no headers, no packages, no symbols for debuggers.
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
local=$work/root/usr/local
mkdir -p "$local/bin" "$local/lib/python$version/site-packages"
cp "$prefix/bin/python$version" "$local/bin/"
ln -s "python$version" "$local/bin/python3"
ln -s python3 "$local/bin/python"
find "$prefix/lib" -maxdepth 1 -name 'libpython3*.so*' -exec cp -a -t "$local/lib" {} +
tar -C "$prefix/lib/python$version" -c \
  --exclude=./site-packages --exclude=./test --exclude=tests --exclude=__pycache__ \
  --exclude='./config-*' --exclude=./idlelib --exclude=./tkinter --exclude=./turtledemo . |
  tar -C "$local/lib/python$version" -x --no-same-owner
find "$local" -type f \( -name '*.so*' -o -path '*/bin/python*' \) -exec strip --strip-unneeded {} +

container=$(buildah from scratch)
buildah add -q "$container" "$work/debian.tar" / >/dev/null
buildah add -q "$container" "$work/root" / >/dev/null
buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3 "$container"
buildah run --isolation chroot "$container" -- sh -c \
  'ldconfig; python -m ensurepip >/dev/null 2>&1; ln -sf pip3 /usr/local/bin/pip; find /usr/local -name __pycache__ -prune -exec rm -r {} +'
buildah commit -q "$container" "$name" >/dev/null
