"""Memory of large images: fused attention as in our graphs, against explicit matrix products.

Claim: at 1372 pixels, ONNX Runtime with fused attention needs a small part of the memory of
explicit attention. OpenVINO needs no more than that.

Run: python -m benchmarks.attention_memory [--sides 448 896 1372]
Two blocks of B/14's width, float32, one image, one thread. Each number comes from its own process,
which prints its peak memory growth and its CPU seconds.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

LIMIT_S: Final = 600
TOWER: Final = {"hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12}
TRY: Final = """
import sys, time, numpy
def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024
runtime, path, side = sys.argv[1], sys.argv[2], int(sys.argv[3])
pixels = numpy.full((1, 3, side, side), 0.5, numpy.float32)
if runtime == "onnx":
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run = lambda: session.run(None, {"pixel_values": pixels})
else:
    from model.runtime.openvino_runtime import openvino_core
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(path, "CPU", settings)
    run = lambda: compiled({"pixel_values": pixels})
before, began = status("VmRSS"), time.process_time()
run()
print(status("VmHWM") - before, time.process_time() - began)
"""


def write_graphs(folder: Path) -> dict[str, Path]:
    """Write the same two blocks with attention as one operator and as matrix products."""
    import torch  # noqa: PLC0415 - only where graphs are made
    from transformers import Tipsv2Config, Tipsv2Model  # noqa: PLC0415

    from model.encoder import VisionGraph  # noqa: PLC0415
    from model.export.attention import FUSED  # noqa: PLC0415
    from model.export.graph_writer import trace_vision  # noqa: PLC0415
    from model.export.tracing import EAGER, save_graph  # noqa: PLC0415

    torch.manual_seed(0)
    text = {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12}
    config = Tipsv2Config(
        text_config={**text, "vocab_size": 64, "intermediate_size": 64},
        vision_config={**TOWER, "image_size": 448, "mlp_ratio": 4},
    )
    model = Tipsv2Model(config).eval()
    paths = {name: folder / name / "vision.onnx" for name in ("written out", "one operator")}
    for name, attention in (("written out", EAGER), ("one operator", FUSED)):
        save_graph(trace_vision(VisionGraph(model), 14, attention), paths[name])
    return paths


def measure(runtime: str, path: Path, side: int) -> tuple[float, float] | None:
    """Return MiB and CPU seconds; None if the process was killed, most likely out of memory."""
    command = [sys.executable, "-c", TRY, runtime, str(path), str(side)]
    child = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=LIMIT_S, close_fds=True
    )
    if child.returncode != 0:
        return None
    mib, cpu_s = child.stdout.split()[-2:]
    return float(mib), float(cpu_s)


def main() -> None:
    """Write both graphs and try each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[448, 896, 1372])
    sides = parser.parse_args().sides
    with tempfile.TemporaryDirectory() as folder:
        paths = write_graphs(Path(folder))
        print("| runtime | attention | " + " | ".join(f"{side} px" for side in sides) + " |")
        print("| --- | --- |" + " --- |" * len(sides))
        for runtime in ("onnx", "openvino"):
            for name, path in paths.items():
                cells = [measure(runtime, path, side) for side in sides]
                texts = ["ended" if c is None else f"{c[0]:.0f} MiB, {c[1]:.1f} s" for c in cells]
                print(f"| {runtime} | {name} | " + " | ".join(texts) + " |", flush=True)


if __name__ == "__main__":
    main()
