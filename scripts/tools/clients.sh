#!/usr/bin/env bash
# Clients of other projects, which docs/clients.md shows and tests/end_to_end/test_documentation.py runs. A Python of
# their own keeps their hundred packages from ours.
set -euo pipefail

CLIENTS=(
  chromadb==1.5.9
  kserve==0.21.0
  lancedb==0.40.0
  langchain-openai==1.7.4
  litellm==1.110.2
  llama-index-embeddings-openai-like==0.4.0
  perf-analyzer==2.60.0
  qdrant-client==1.20.0
)
venv=.tools/clients-venv

# uv installs them in seconds, pip in minutes.
if [[ ! -f $venv/.installed || "$(<$venv/.installed)" != "${CLIENTS[*]}" ]]; then
  python3 -m venv --clear $venv
  $venv/bin/python -m pip install -q uv
  $venv/bin/uv pip install -q --python $venv/bin/python "${CLIENTS[@]}" || $venv/bin/python -m pip install -q "${CLIENTS[@]}"
  echo "${CLIENTS[*]}" >$venv/.installed
fi
ln -sf ../clients-venv/bin/perf_analyzer .tools/bin/perf_analyzer
echo "${#CLIENTS[@]} clients of other projects"
