"""Rounded weights are stored in fewer bytes without another result; others stay as they are."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn

from model.export.exact import Rounding, round_weights, store_exactly
from model.export.half import to_half
from model.export.tracing import save_graph, trace
from model.onnx_files import check_graph
from model.runtime.openvino_runtime import openvino_core
from tests.model.export.test_graph_writer import run_onnx


class Network(nn.Module):
    """A table, a convolution and a product: every kind of weight that a tower has."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.convolution = nn.Conv1d(32, 64, 3, padding=1)
        self.product = nn.Linear(64, 40)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        wide: torch.Tensor = self.convolution(self.table(ids).transpose(1, 2))
        output: torch.Tensor = self.product(wide.relu().transpose(1, 2))
        return output


IDS = torch.arange(24).reshape(2, 12)


@pytest.mark.parametrize(("kind", "share"), [("fp16", 0.6), ("int8_tables", 0.58), (None, 1.0)])
def test_rounded_weights_take_fewer_bytes_and_give_the_same(
    tmp_path: Path, kind: Rounding | None, share: float
) -> None:
    network = Network().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if kind is not None:
        round_weights(network, kind)
    for name, tensor in network.state_dict().items():
        is_rounded = kind is not None and name.endswith("weight")
        assert torch.equal(tensor, before[name]) != is_rounded
        bound = {"fp16": 1e-3, "int8_tables": 1e-2, None: 0}[kind] * before[name].abs().max()
        assert (tensor - before[name]).abs().max() <= bound
    graph = trace(network, {"ids": IDS}, outputs=["out"], axes={"ids": {0: "batch", 1: "tokens"}})
    plain, path = tmp_path / "plain.onnx", tmp_path / "stored.onnx"
    save_graph(graph, plain)
    store_exactly(graph)
    save_graph(graph, path)
    onnx.checker.check_model(path, full_check=True)
    assert path.stat().st_size <= share * plain.stat().st_size
    with torch.no_grad():
        wanted = network(IDS).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"ids": IDS.numpy()})
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    if kind == "int8_tables":
        # Rows are looked up in 8 bits: no runtime can keep the whole table in float32.
        nodes = onnx.load(path).graph.node
        looked_up = [node.input[0] for node in nodes if node.op_type == "Gather"]
        assert sorted(looked_up) == ["table.weight_scale", "table.weight_stored"]
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "NUM_STREAMS": 2,  # as with two lanes
    }
    compiled = openvino_core().compile_model(path, "CPU", settings)
    for request in (compiled.create_infer_request(), compiled.create_infer_request()):
        output = request.infer({"ids": IDS.numpy()})[0]
        np.testing.assert_allclose(output, wanted, rtol=0, atol=1e-5)


class Unit(nn.Module):
    """A product, scaled to length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(64, 64, bias=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.product(pixel_values * 2)
        unit: torch.Tensor = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return unit


def test_weights_that_the_float32_graph_stores_in_fp16_are_read_from_its_file(
    tmp_path: Path,
) -> None:
    network = Unit().eval()
    round_weights(network, "fp16")
    rows = torch.rand(2, 3, 64)
    axes = {"pixel_values": {0: "batch", 1: "rows"}}
    graph = trace(network, {"pixel_values": rows}, outputs=["out"], axes=axes)
    store_exactly(graph)
    float32, half = tmp_path / "float32.onnx", tmp_path / "half.onnx"
    save_graph(graph, float32)
    again = onnx_ir.load(float32)
    to_half(again, "fp16")
    save_graph(again, half, stored_in=float32)
    assert check_graph(half, 10**6) == {"float32.onnx"}
    assert half.stat().st_size < 4_000 < 2 * 64 * 64 < float32.stat().st_size
    rows[0, 0] = 0  # of length 0: least lengths are no numbers in fp16
    (found,) = run_onnx(half, {"pixel_values": rows.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, network(rows).numpy(), rtol=0, atol=2e-3)
