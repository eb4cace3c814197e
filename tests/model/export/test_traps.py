"""What a stock export gets wrong, and that ours does not: sizes, empty texts, memory."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import Tipsv2Model

from model.graphs import TEXT_FILE, VISION_FILE
from model.package import ModelPackage
from model.runtime.load import load_runtime

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
    written_out_mib = num_heads * num_tokens**2 * 4 / 2**20
    path = str(tiny_package.file(VISION_FILE))
    command = [sys.executable, "-c", GROWTH, runtime, path, str(side)]
    child = subprocess.run(
        command, cwd=project_root, capture_output=True, text=True, check=True, timeout=200
    )
    assert float(child.stdout) < written_out_mib / 3


@pytest.mark.slow
def test_a_stock_export_knows_one_grid_and_ours_all(
    tiny_model: Tipsv2Model, tiny_package: ModelPackage, tmp_path: Path
) -> None:
    """The transposed size has as many tokens, so the stock graph runs it, with wrong places."""
    tower = tiny_model.vision_model
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            tower,
            kwargs={"pixel_values": torch.rand(1, 3, 42, 70)},
            input_names=["pixel_values"],
            dynamic_shapes={
                "pixel_values": {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
            },
            f=tmp_path / "stock.onnx",
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(
        tmp_path / "stock.onnx", providers=["CPUExecutionProvider"]
    )
    pixels = np.random.default_rng(0).random((1, 3, 70, 42), dtype=np.float32)
    with torch.no_grad():
        expected = tower(pixel_values=torch.from_numpy(pixels)).last_hidden_state.numpy()
    stock = session.run(None, {"pixel_values": pixels})[0]
    assert stock.shape == expected.shape
    assert np.abs(stock - expected).max() > 0.01
    ours = onnxruntime.InferenceSession(
        tiny_package.file(VISION_FILE), providers=["CPUExecutionProvider"]
    ).run(["patch_embeddings"], {"pixel_values": pixels})[0]
    np.testing.assert_allclose(ours, expected[:, 2:], rtol=0, atol=1e-4)


def test_transformers_drops_pixels_silently_and_a_runtime_refuses(
    tiny_model: Tipsv2Model, tiny_package: ModelPackage
) -> None:
    pixels = np.zeros((1, 3, 60, 60), dtype=np.float32)
    with torch.no_grad():
        tokens = tiny_model.vision_model(pixel_values=torch.from_numpy(pixels)).last_hidden_state
    assert tokens.shape[1] == 2 + 16
    runtime = load_runtime(tiny_package, runtime="onnx", precision="fp32")
    try:
        with pytest.raises(ValueError, match="multiples of 14"):
            runtime.encode_images(pixels)
    finally:
        runtime.close()


@pytest.mark.slow
def test_an_empty_text_is_no_number_in_a_stock_export_and_zeros_in_ours(
    tiny_model: Tipsv2Model, tiny_package: ModelPackage, tmp_path: Path
) -> None:
    """The exporter adds the mean's epsilon to a whole number, where it is lost."""
    ids_BL = np.array([[5, 6, 7], [0, 0, 0]], dtype=np.int64)
    inputs = {"input_ids": ids_BL, "attention_mask": (ids_BL > 0).astype(np.int64)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            tiny_model.text_model,
            kwargs={name: torch.from_numpy(array) for name, array in inputs.items()},
            input_names=list(inputs),
            f=tmp_path / "stock.onnx",
            dynamo=True,
            verbose=False,
        )
    providers = ["CPUExecutionProvider"]
    stock = onnxruntime.InferenceSession(tmp_path / "stock.onnx", providers=providers)
    pooled_BD = stock.run(None, inputs)[1]
    assert np.isfinite(pooled_BD[0]).all()
    assert np.isnan(pooled_BD[1]).all()
    ours = onnxruntime.InferenceSession(tiny_package.file(TEXT_FILE), providers=providers)
    embeddings_BD = ours.run(None, inputs)[0]
    np.testing.assert_allclose(embeddings_BD[0], pooled_BD[0], rtol=0, atol=1e-5)
    assert (embeddings_BD[1] == 0).all()


def test_an_empty_text_is_refused(tiny_package: ModelPackage) -> None:
    runtime = load_runtime(tiny_package, runtime="onnx", precision="fp32")
    empty = np.zeros((1, 2), dtype=np.int64)
    try:
        with pytest.raises(ValueError, match="no token"):
            runtime.encode_texts(empty, empty)
    finally:
        runtime.close()
