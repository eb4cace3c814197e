"""Attention over images needs no matrix of tokens by tokens."""

import subprocess
import sys
from pathlib import Path

import pytest

from model.graphs import VISION_FILE
from model.package import ModelPackage

# Runs a graph on one square and prints by how many MiB the process grew at most.
GROWTH = """
import sys, numpy
def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024
runtime, path, side = sys.argv[1], sys.argv[2], int(sys.argv[3])
pixels = numpy.zeros((1, 3, side, side), numpy.float32)
if runtime == "onnx":
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_cpu_mem_arena = 1, False
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run = lambda: session.run(None, {"pixel_values": pixels})
else:
    from model.runtime.openvino_runtime import openvino_core
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(path, "CPU", settings)
    run = lambda: compiled({"pixel_values": pixels})
before = status("VmRSS")
run()
print(status("VmHWM") - before)
"""


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_attention_never_keeps_tokens_by_tokens(
    tiny_package: ModelPackage, project_root: Path, runtime: str
) -> None:
    side, num_heads = 1120, 2
    num_tokens = (side // 14) ** 2 + 2
    matrix_mib = num_heads * num_tokens**2 * 4 / 2**20
    path = str(tiny_package.file(VISION_FILE))
    command = [sys.executable, "-c", GROWTH, runtime, path, str(side)]
    child = subprocess.run(
        command, cwd=project_root, capture_output=True, text=True, check=True, timeout=200
    )
    assert float(child.stdout) < matrix_mib / 3
