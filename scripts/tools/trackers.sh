#!/usr/bin/env bash
# Weights & Biases and MLflow, to which training reports and which tests/training/test_boards.py runs. Their forty
# packages want another protobuf than ours, so they have a Python of their own.
set -euo pipefail

TRACKERS=(mlflow-skinny==3.17.2 wandb==0.31.0 numpy pillow prometheus-client) # the last three are what our boards use
venv=.tools/trackers-venv

if [[ ! -f $venv/.installed || "$(<$venv/.installed)" != "${TRACKERS[*]}" ]]; then
  python3 -m venv --clear $venv
  $venv/bin/python -m pip install -q uv
  $venv/bin/uv pip install -q --python $venv/bin/python "${TRACKERS[@]}" || $venv/bin/python -m pip install -q "${TRACKERS[@]}"
  echo "${TRACKERS[*]}" >$venv/.installed
fi
echo "${TRACKERS[*]:0:2}"
