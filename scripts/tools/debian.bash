# To be sourced: what the scripts in tools/ need of Debian. Those run in the project's root.

# Install packages, as root only; $1 says what to do where that is not to be had.
debian_install() {
  local advice=$1
  shift
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "$advice" >&2
    return 1
  fi
  apt-get install -y -q --no-install-recommends "$@" >/dev/null ||
    { apt-get update -q && apt-get install -y -q --no-install-recommends "$@" >/dev/null; }
}

# Put programs of one package into .tools/bin: unpacked and not installed, so that no root is needed
# and no service appears. Where the machine has them already they are linked.
#   debian_unpack PACKAGE PATH_IN_PACKAGE...
debian_unpack() {
  local package=$1 path name archives
  shift
  local missing=0
  for path in "$@"; do
    name=$(basename "$path")
    [[ -x .tools/bin/$name ]] && continue
    if command -v "$name" >/dev/null; then
      ln -sf "$(command -v "$name")" ".tools/bin/$name"
    else
      missing=1
    fi
  done
  [[ $missing == 0 ]] && return
  if ! command -v apt-get >/dev/null; then
    echo "$* of the package $package are missing, and not to be had without apt-get: install them, then run this again" >&2
    return 1
  fi
  archives=$(mktemp -d)
  (
    cd "$archives"
    apt-get download -q "$package" || { apt-get update -q && apt-get download -q "$package"; }
  )
  dpkg-deb --fsys-tarfile "$archives/$package"_*.deb | tar -x -C "$archives" "${@/#/.}"
  for path in "$@"; do
    mv "$archives$path" .tools/bin/
  done
  rm -rf "$archives"
}
