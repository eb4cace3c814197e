"""Memory that ONNX Runtime's arena keeps after a large image; time that OpenVINO's cache saves.

Claims: without the arena, memory is returned, but the peak of B/14 is higher. OpenVINO's cache
(CACHE_DIR) saves most of the compile time, but serves old weights if the file's time is unchanged.

Run: python -m benchmarks.kept_by_runtimes [--model FOLDER] [--sides 448 1372 448]
Float32, one image at a time, one thread. Each line comes from its own process.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from model.graphs import VISION_FILE
from model.package import open_package

LIMIT_S: Final = 900
FIXED_TIME_S: Final = 1_000_000_000
START: Final = """
import sys, time, numpy
def mb(key):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024 / 1e6
def image(side):
    return numpy.random.default_rng(0).random((1, 3, side, side), dtype=numpy.float32)
"""
ONNX: Final = """
import onnxruntime
path, mode, *sides = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.enable_cpu_mem_arena = mode != "no arena"
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
told = [f"{mb('VmRSS'):.0f} MB loaded"]
for side in map(int, sides):
    call = onnxruntime.RunOptions()
    if mode == "shrinking arena":
        call.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    times = []
    for _ in range(3):
        began = time.process_time()
        session.run(None, {"pixel_values": image(side)}, call)
        times.append(time.process_time() - began)
    told.append(f"{side} px {min(times):.2f} s, then {mb('VmRSS'):.0f} MB (peak {mb('VmHWM'):.0f})")
print("; ".join(told))
"""
OPENVINO: Final = """
from model.runtime.openvino_runtime import openvino_core
settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
if len(sys.argv) > 2:
    settings["CACHE_DIR"] = sys.argv[2]
began = time.process_time()
compiled = openvino_core().compile_model(sys.argv[1], "CPU", settings)
took = time.process_time() - began
checksum = float(numpy.abs(compiled({"pixel_values": image(112)})[0]).sum())
print(f"{took:.2f} s, {mb('VmRSS'):.0f} MB, checksum {checksum:.6g}")
"""


def run(script: str, *arguments: str) -> str:
    """Run code in a new process and return its output."""
    command = [sys.executable, "-c", START + script, *arguments]
    child = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S)
    return child.stdout.splitlines()[-1]


def replace_weights(path: Path) -> None:
    """Replace a graph's weights, but keep the file's size and modification time."""
    graph = onnx.load(path)
    for weight in graph.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.raw_data) > 100_000:
            weight.raw_data = (1.5 * np.frombuffer(weight.raw_data, np.float32)).tobytes()
    onnx.save(graph, path)
    os.utime(path, (FIXED_TIME_S, FIXED_TIME_S))


def main() -> None:
    """Measure one package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled-student")
    parser.add_argument("--sides", nargs="+", default=["448", "1372", "448"])
    options = parser.parse_args()
    original = open_package(options.model).file(VISION_FILE)
    for mode in ("arena", "no arena", "shrinking arena"):
        print(f"onnx, {mode}: {run(ONNX, str(original), mode, *options.sides)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path, kept = Path(folder) / "vision.onnx", str(Path(folder) / "kept")
        shutil.copyfile(original, path)
        os.utime(path, (FIXED_TIME_S, FIXED_TIME_S))
        print(f"openvino compiles in {run(OPENVINO, str(path))}")
        print(f"and keeps the graph in {run(OPENVINO, str(path), kept)}")
        print(f"finds it in {run(OPENVINO, str(path), kept)}")
        size_mb = sum(file.stat().st_size for file in Path(kept).iterdir()) / 1e6
        print(f"of {size_mb:.0f} MB")
        replace_weights(path)
        print(f"other weights, same time: {run(OPENVINO, str(path), kept)}")
        print(f"other weights, compiled: {run(OPENVINO, str(path))}")


if __name__ == "__main__":
    main()
