#!/usr/bin/env bash
# Fill in the address of the repository and the registry of its images, where pages and packages name them. The release does so
# before it builds wheels; run it once and commit the result, so that the repository's own pages have them too.
#   scripts/fill_addresses.sh https://HOST/OWNER/tipserve REGISTRY_HOST/OWNER
set -euo pipefail
cd "$(dirname "$0")/.."
sed -i -e "s#https://example\.org/OWNER/tipserve#$1#g" -e "s#REGISTRY/tipserve#$2/tipserve#g" \
  README.md docs/quickstart.md mkdocs.yml pyproject.toml clients/python/pyproject.toml
