#!/usr/bin/env bash
# What judges manifests: kubectl, whose kustomize builds them; from Debian.
set -euo pipefail
. scripts/tools/debian.bash

debian_unpack kubectl /usr/bin/kubectl
.tools/bin/kubectl version --client
