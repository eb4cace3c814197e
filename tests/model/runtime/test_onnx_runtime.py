"""ONNX Runtime computes on the requested device, or not at all, and keeps little memory."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from model.package import ModelPackage
from model.runtime import graph_runtime, onnx_runtime
from model.runtime.base import LaneShare, MissingRuntimeError
from model.runtime.choice import RuntimeRequest, choose_runtime
from model.runtime.load import load_chosen, load_runtime
from model.runtime.onnx_runtime import (
    KEPT_CALLS,
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


def test_threads_sleep_when_idle_and_keep_to_their_number(tiny_package: ModelPackage) -> None:
    runtime: Any = load_runtime(tiny_package, runtime="onnx", num_threads=3)
    for graph in runtime._graphs.values():
        options = graph._session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    runtime.close()


def test_the_arena_is_shrunk_after_large_calls_and_bursts_only(
    tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime: Any = load_runtime(tiny_package, runtime="onnx")
    vision, text = runtime._graphs.values()
    assert [graph._has_arena for graph in (vision, text)] == [True, False]
    arena = shared_arena()
    shrunk: list[None] = []
    monkeypatch.setattr(arena, "shrink", lambda: shrunk.append(None))
    monkeypatch.setattr(onnx_runtime, "PIXELS_AT_ONCE", 56 * 56)
    for side, num_shrunk in ((56, 0), (70, 1), (56, 1)):
        runtime.encode_images(np.zeros((2, 3, side, side), np.float32))
        assert len(shrunk) == num_shrunk
    for num_calls, num_shrunk in ((KEPT_CALLS, 1), (KEPT_CALLS + 1, 2), (1, 2)):
        with ExitStack() as calls:
            for _ in range(num_calls):
                calls.enter_context(arena.call(is_large=False))
        assert len(shrunk) == num_shrunk
    runtime.close()


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


def test_outputs_that_are_held_keep_no_memory_of_their_calls(large_graph: OnnxGraph) -> None:
    shared_arena()
    image = np.ones((1, 3, 8, 2**20), np.float32)  # 96 MiB
    collect_and_trim()
    began_bytes = resident_bytes()
    held = [large_graph.run({"pixel_values": image}, ["z"])["z"] for _ in range(5)]
    kept_bytes = resident_bytes() - began_bytes - sum(array.nbytes for array in held)
    # Arrays of ONNX Runtime itself keep a whole call.
    assert kept_bytes < 40 * 2**20


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


def test_the_graph_of_one_node_is_what_it_says() -> None:
    model = onnx.load_from_string(onnx_runtime.ABS_GRAPH)
    onnx.checker.check_model(model)
    assert [(node.op_type, *node.input, *node.output) for node in model.graph.node] == [
        ("Abs", "x", "y")
    ]


@pytest.mark.parametrize(("num_lanes", "max_large"), [(1, 1), (6, 3)])
def test_half_of_the_lanes_compute_large_images_at_once(
    tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch, num_lanes: int, max_large: int
) -> None:
    monkeypatch.setattr(graph_runtime, "PIXELS_TO_RELEASE", 56 * 56)
    large_calls = onnx_runtime.LargeCalls()
    monkeypatch.setattr(onnx_runtime, "large_calls", large_calls)
    choice = choose_runtime(tiny_package, RuntimeRequest(runtime="onnx"))
    small, large = (np.zeros((1, 3, side, side), np.float32) for side in (56, 112))
    with (
        closing(load_chosen(tiny_package, choice, LaneShare(num_lanes=num_lanes))) as runtime,
        ThreadPoolExecutor(1) as other,
    ):
        with ExitStack() as others:
            for _ in range(max_large - 1):
                others.enter_context(large_calls.one_of(max_large))
            other.submit(runtime.encode_images, large).result(60)
            others.enter_context(large_calls.one_of(max_large))
            runtime.encode_images(small)
            waiting = other.submit(runtime.encode_images, large)
            with pytest.raises(TimeoutError):
                waiting.result(0.2)
        waiting.result(60)
