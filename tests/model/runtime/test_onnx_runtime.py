"""ONNX Runtime computes where it was asked to."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.package import ModelPackage
from model.runtime.base import MissingRuntimeError
from model.runtime.load import load_runtime
from model.runtime.onnx_runtime import ProviderError, check_placement, open_session

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


@dataclass
class Session:
    """Says where it computes."""

    providers: list[str]
    placed: dict[str, list[str]]

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(
                ep_name=name,
                get_nodes=lambda types=types: [SimpleNamespace(op_type=t) for t in types],
            )
            for name, types in self.placed.items()
        ]


def test_a_session_on_its_provider_passes() -> None:
    placed = {CUDA: ["MatMul", "Softmax"], CPU: ["Shape", "Gather"]}
    check_placement(Session([CUDA, CPU], placed), "cuda")
    check_placement(Session([TENSORRT, CUDA, CPU], placed), "tensorrt")
    check_placement(SimpleNamespace(get_providers=lambda: [CUDA, CPU]), "cuda")


def test_a_session_that_fell_back_to_the_cpu_is_refused() -> None:
    with pytest.raises(ProviderError, match="'cuda' and would have computed by CPUExecution"):
        check_placement(Session([CPU], {}), "cuda")
    with pytest.raises(ProviderError, match="'tensorrt' and would have computed by CUDAExecution"):
        check_placement(Session([CUDA, CPU], {}), "tensorrt")


def test_a_graph_whose_large_nodes_are_on_the_cpu_is_refused() -> None:
    placed = {CUDA: ["Conv"], CPU: ["Shape", "MatMul", "Softmax", "MatMul"]}
    with pytest.raises(ProviderError, match="leaves MatMul, Softmax of this graph to the CPU"):
        check_placement(Session([CUDA, CPU], placed), "cuda")


def test_a_build_without_the_provider_is_refused(tiny_package: ModelPackage) -> None:
    with pytest.raises(MissingRuntimeError, match="takes the place of onnxruntime"):
        open_session(tiny_package.file("onnx/vision_model.onnx"), "cuda", "fp32", 1)


class Library(SimpleNamespace):
    """Stands in for a build with CUDA; remembers how its session was asked for."""

    def __init__(self, session: Any) -> None:
        super().__init__(asked={}, config={}, were_libraries_sought=False)
        self.session = session

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU]

    def preload_dlls(self) -> None:
        self.were_libraries_sought = True

    def SessionOptions(self) -> Any:  # noqa: N802 - its name
        return SimpleNamespace(add_session_config_entry=self.config.__setitem__)

    def InferenceSession(self, path: Path, options: Any, **asked: Any) -> Any:  # noqa: N802
        self.asked = asked
        if isinstance(self.session, Exception):
            raise self.session
        return self.session


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("fp16", "1")])
def test_float32_on_a_gpu_is_float32(
    monkeypatch: pytest.MonkeyPatch, precision: Any, tf32: str
) -> None:
    library = Library(Session([CUDA, CPU], {CUDA: ["MatMul"]}))
    monkeypatch.setitem(sys.modules, "onnxruntime", library)
    assert open_session(Path("a.onnx"), "cuda", precision, 1) is library.session
    (name, options), last = library.asked["providers"]
    assert (name, options["use_tf32"], last) == (CUDA, tf32, CPU)
    assert library.asked["enable_fallback"] == 0
    assert library.were_libraries_sought
    assert library.config["session.record_ep_graph_assignment_info"] == "1"


def test_an_error_of_the_provider_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", Library(RuntimeError("CUDA error 35")))
    with pytest.raises(ProviderError, match="cannot use the provider 'tensorrt': CUDA error 35"):
        open_session(Path("a.onnx"), "tensorrt", "fp16", 1)


def test_a_session_that_silently_fell_back_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", Library(Session([CPU], {CPU: ["MatMul"]})))
    with pytest.raises(ProviderError, match="libraries of CUDA or cuDNN"):
        open_session(Path("a.onnx"), "cuda", "fp32", 1)


def test_threads_sleep_when_idle_and_keep_to_their_number(tiny_package: ModelPackage) -> None:
    runtime: Any = load_runtime(tiny_package, runtime="onnx", num_threads=3)
    for graph in runtime._graphs.values():
        options = graph._session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert options.intra_op_num_threads == 3
        assert options.inter_op_num_threads == 1
    runtime.close()
