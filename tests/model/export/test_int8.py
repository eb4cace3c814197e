"""A network of convolutions in int8: what is quantised, and to how many bits."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.export.int8 import quantise
from model.export.tracing import save_graph, trace


class Network(nn.Module):
    """A stem, a small block, large blocks with a residual, over two sizes; then a product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.small = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.expand = nn.Conv2d(32, 64, 1)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.project = nn.Conv2d(64, 64, 1)
        self.again = nn.Conv2d(64, 64, 1)
        self.head = nn.Linear(64, 48)

    def trunk(self, pixels_B3HW: Tensor) -> Tensor:
        x = F.relu6(self.expand(F.relu6(self.small(F.relu6(self.stem(pixels_B3HW))))))
        x = self.project(F.relu6(self.depthwise(x)))
        sum_BCHW: Tensor = x + self.again(x)
        return sum_BCHW

    def forward(self, pixel_values: Tensor) -> Tensor:
        fine_BC = self.trunk(pixel_values).mean((2, 3))
        coarse_BC = self.trunk(F.avg_pool2d(pixel_values, 2)).mean((2, 3))
        cells_BD: Tensor = self.head(fine_BC + coarse_BC)
        return cells_BD


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The network in float32 and in int8."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("int8")
    pixels = torch.rand(2, 3, 32, 32)
    axes = {"pixel_values": {0: "batch"}}
    traced = trace(Network().eval(), {"pixel_values": pixels}, outputs=("cells",), axes=axes)
    save_graph(traced, folder / "float.onnx")
    examples = [{"pixel_values": pixels.numpy()}]
    save_graph(quantise(onnx_ir.load(folder / "float.onnx"), examples), folder / "int8.onnx")
    return folder / "float.onnx", folder / "int8.onnx"


def test_weights_whose_products_could_overflow_16_bits_have_7_bits(
    graphs: tuple[Path, Path],
) -> None:
    graph = onnx.load(graphs[1]).graph
    arrays = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
    kernels = [w for w in arrays.values() if w.dtype == np.int8 and w.ndim == 4]
    assert sorted(int(np.abs(kernel).max()) for kernel in kernels) == [64, 64, 64, 127]
    (deep,) = (kernel for kernel in kernels if np.abs(kernel).max() == 127)
    assert deep.shape == (64, 1, 3, 3)


def test_it_computes_what_float32_computes(graphs: tuple[Path, Path]) -> None:
    torch.manual_seed(1)
    pixels = torch.rand(3, 3, 32, 32).numpy()
    ours, theirs = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
            None, {"pixel_values": pixels}
        )[0]
        for path in (graphs[1], graphs[0])
    )
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()
