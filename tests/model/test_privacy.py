"""ONNX Runtime sends no telemetry unless the user wants it."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
from model.runtime.onnx_runtime import import_onnxruntime
import_onnxruntime()
import os
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize(("wish", "value"), [(None, "1"), ("0", "0")])
def test_telemetry_is_off_before_onnxruntime_starts(wish: str | None, value: str) -> None:
    environment = {n: v for n, v in os.environ.items() if n != "ORT_DISABLE_TELEMETRY"}
    if wish is not None:
        environment["ORT_DISABLE_TELEMETRY"] = wish
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout.strip() == value
    assert value == "0" or "telemetry" not in ended.stderr
