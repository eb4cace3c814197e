"""ONNX Runtime computes on the requested device, or not at all, and keeps little memory."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from model.package import ModelPackage
from model.runtime.base import MissingRuntimeError
from model.runtime.onnx_runtime import (
    OnnxGraph,
    ProviderError,
    open_session,
    shared_arena,
)
from service.machine import collect_and_trim, resident_bytes

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def session(*providers: str, on_cpu: str = "") -> SimpleNamespace:
    """A session with these providers, and with node types on the CPU."""
    nodes = [SimpleNamespace(op_type=kind) for kind in on_cpu.split()]
    placed = [SimpleNamespace(ep_name=CPU, get_nodes=lambda: nodes)]
    return SimpleNamespace(
        get_providers=lambda: list(providers), get_provider_graph_assignment_info=lambda: placed
    )


class Library(SimpleNamespace):
    """Stands in for a build with CUDA, and keeps the arguments of its session."""

    def __init__(self, opened: Any) -> None:
        super().__init__(opened=opened, arguments={}, were_libraries_sought=False)

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def preload_dlls(self) -> None:
        self.were_libraries_sought = True

    def SessionOptions(self) -> Any:  # noqa: N802 - its name
        return SimpleNamespace(add_session_config_entry=lambda *_: None)

    def InferenceSession(self, path: Path, options: Any, **arguments: Any) -> Any:  # noqa: N802
        self.arguments = arguments
        if isinstance(self.opened, Exception):
            raise self.opened
        return self.opened


OLD_LIBRARY = SimpleNamespace(get_providers=lambda: [CUDA, CPU])  # does not report placements


@pytest.mark.parametrize("opened", [session(CUDA, CPU, on_cpu="Shape Gather"), OLD_LIBRARY])
@pytest.mark.parametrize("tf32", [False, True])
def test_a_session_computes_on_the_gpu_and_in_tf32_only_if_set(
    monkeypatch: pytest.MonkeyPatch, opened: Any, tf32: bool
) -> None:
    library = Library(opened)
    monkeypatch.setitem(sys.modules, "onnxruntime", library)
    assert open_session(Path("a.onnx"), "gpu", 1, tf32=tf32) is opened
    (name, options), last = library.arguments["providers"]
    assert (name, options["use_tf32"], last) == (CUDA, str(int(tf32)), CPU)
    assert library.arguments["enable_fallback"] == 0
    assert library.were_libraries_sought


@pytest.mark.parametrize(
    ("opened", "complaint"),
    [
        (session(CPU, on_cpu="MatMul"), "could not start CUDA and would have computed by CPUExec"),
        (session(CUDA, CPU, on_cpu="Shape MatMul Softmax"), "leaves MatMul, Softmax of"),
        (session(CUDA, CPU, on_cpu="QLinearMatMul MatMulInteger"), "leaves MatMulInteger"),
        (RuntimeError("CUDA error 35"), "cannot use CUDA: CUDA error 35"),
    ],
)
def test_a_session_that_would_compute_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, opened: Any, complaint: str
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", Library(opened))
    with pytest.raises(ProviderError, match=complaint):
        open_session(Path("a.onnx"), "gpu", 1)


def test_a_build_without_cuda_is_refused(tiny_package: ModelPackage) -> None:
    with pytest.raises(MissingRuntimeError, match="takes the place of onnxruntime"):
        open_session(tiny_package.file("onnx/vision_model.onnx"), "gpu", 1)


@pytest.fixture
def large_graph(tmp_path: Path) -> Iterator[OnnxGraph]:
    """Takes as much memory as its input, and gives little."""
    x, y, z = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, rows, "w"])
        for name, rows in (("pixel_values", "h"), ("y", "h"), ("z", 1))
    )
    nodes = [
        onnx.helper.make_node("Abs", ["pixel_values"], ["y"]),
        onnx.helper.make_node("ReduceMax", ["y"], ["z"], axes=[2]),
    ]
    graph = onnx.helper.make_graph(nodes, "large", [x], [z], value_info=[y])
    opsets = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path / "large.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    opened = OnnxGraph(open_session(path, "cpu", 1), "cpu", max_large=1)
    yield opened
    opened.close()


def test_a_release_frees_what_the_arena_keeps(large_graph: OnnxGraph) -> None:
    shared_arena().shrink()
    width = 448 * 448 // 8
    image = np.linspace(-1, 1, 3 * 8 * width, dtype=np.float32).reshape(1, 3, 8, width)
    batch = np.concatenate([image] * 8)
    expected = large_graph.run({"pixel_values": image}, ["z"])["z"]
    np.testing.assert_array_equal(expected, np.abs(image).max(axis=2, keepdims=True))
    large_graph.run({"pixel_values": batch}, ["z"])
    collect_and_trim()
    kept_bytes = resident_bytes()
    large_graph.release_idle_memory()
    collect_and_trim()
    assert kept_bytes - resident_bytes() > 0.8 * image.nbytes
    again = large_graph.run({"pixel_values": image}, ["z"])["z"]
    np.testing.assert_array_equal(again, expected)
