#!/usr/bin/env bash
# What judges manifests: kubectl, whose kustomize builds them, from Debian; checkov from PyPI; models of custom
# resources from npm (KEDA, Gateway API, Prometheus operator). The last two lie apart from all else.
set -euo pipefail
. scripts/tools/debian.bash

MODELS=(@kubernetes-models/gateway-api@2.0.0 @kubernetes-models/keda@2.0.0 @kubernetes-models/prometheus-operator@6.0.0 kubernetes-models@5.1.0)
CHECKOV=checkov==3.3.30

# Whether a folder holds the wanted version; the script that fills it calls mark_installed.
is_installed() { [[ -f $1/.installed && $(<"$1/.installed") == "$2" ]]; }
mark_installed() { echo "$2" >"$1/.installed"; }

debian_unpack kubectl /usr/bin/kubectl
# Its first line; `head` would end it by SIGPIPE while it writes the second.
version=$(.tools/bin/kubectl version --client)
echo "kubectl ${version%%$'\n'*}"

models=.tools/kubernetes-models
if ! is_installed $models "${MODELS[*]}"; then
  command -v npm >/dev/null ||
    debian_install "npm is missing, and it brings models of custom resources: install Node.js 20 or newer, then run this again" npm
  npm install --prefix $models --no-save --no-audit --no-fund --loglevel=error "${MODELS[@]}"
  mark_installed $models "${MODELS[*]}"
fi

# uv installs checkov's hundred packages in seconds, pip in minutes. A Python of its own keeps them from ours.
venv=.tools/checkov-venv
if ! is_installed $venv "$CHECKOV"; then
  python3 -m venv $venv
  $venv/bin/python -m pip install -q uv
  $venv/bin/uv pip install -q --python $venv/bin/python "$CHECKOV" || $venv/bin/python -m pip install -q "$CHECKOV"
  mark_installed $venv "$CHECKOV"
fi
ln -sf "../checkov-venv/bin/checkov" .tools/bin/checkov

echo "$CHECKOV ${MODELS[*]}"
