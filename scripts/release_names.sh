#!/usr/bin/env bash
# Names of an image of this version, as NAME=VALUE lines for a workflow. Only its tag gets them: a branch has this version too, and
# would push over the released image.
#   REGISTRY=HOST/OWNER scripts/release_names.sh SUFFIX      SUFFIX is "", -gpu, -train ...
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
if [[ ${GITHUB_REF_TYPE:-} != tag || $GITHUB_REF_NAME != "v$version" ]]; then
  echo "the ${GITHUB_REF_TYPE:-tag} is ${GITHUB_REF_NAME:-not set}, and pyproject.toml has the version $version: push the tag v$version" >&2
  exit 1
fi
echo "version=$version"
echo "created=$(date --utc +%FT%TZ)"
echo "repository=${REGISTRY:?set the variable REGISTRY of the repository to HOST/OWNER}/tipserve"
echo "image=$REGISTRY/tipserve:$version${1-}"
