"""ONNX Runtime computes on the requested device, or not at all, and keeps little memory."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.runtime.onnx_runtime import ProviderError, open_session

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
