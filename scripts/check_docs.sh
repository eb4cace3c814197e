#!/usr/bin/env bash
# The documentation site: the generated page is up to date, all links resolve, no page loads anything from outside.
set -euo pipefail
cd "$(dirname "$0")/.."

python scripts/generate_configuration.py --check
NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
if grep -rnE '<(script|img|iframe|link[^>]*stylesheet)[^>]*(src|href)="?(https?:)?//' site --include='*.html'; then
  echo "the site loads something from outside" >&2
  exit 1
fi
