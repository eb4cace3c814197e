"""The service starts on GPUs whose driver refuses details, or says in a sentence why it cannot."""

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from model.package import ModelPackage
from model.runtime.base import LaneShare
from model.runtime.choice import RuntimeChoice
from model.runtime.load import RUNTIMES
from model.runtime.machine import InstalledLibraries
from model.runtime.onnx_runtime import OnnxRuntime
from model.runtime.tensorrt.cuda import Cuda, GpuLibraries
from model.runtime.tensorrt.runtime import TensorRtRuntime
from service.server import Server, main
from service.settings import Settings

Start = Callable[..., tuple[int, str]]


class NVMLError(Exception):
    """As the library's own."""


def nvml(**refused: str) -> SimpleNamespace:
    """A stand-in for pynvml with one H100; functions that are `refused` fail for a reason."""
    readings: dict[str, Any] = {
        "nvmlDeviceGetCudaComputeCapability": (9, 0),
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": 0,
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 << 30, used=1 << 30),
        "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
        "nvmlDeviceGetPowerUsage": 350_000,
        "nvmlDeviceGetTemperature": 60,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=25),
        "nvmlInit": None,
    }
    functions = {
        name: Mock(
            return_value=value, side_effect=NVMLError(refused[name]) if name in refused else None
        )
        for name, value in readings.items()
    }
    return SimpleNamespace(NVMLError=NVMLError, NVML_TEMPERATURE_GPU=0, **functions)


class OnCpu(OnnxRuntime):
    """Computes on the CPU what TensorRT would compute."""

    name = "tensorrt"

    def __init__(self, package: ModelPackage, choice: RuntimeChoice, share: LaneShare) -> None:
        super().__init__(package, replace(choice, runtime="onnx", device="cpu"), share)
        self.device = "gpu"


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_settings: Callable[..., Settings],
    tiny_package: ModelPackage,
    tmp_path: Path,
) -> Iterator[Start]:
    """Run a service on a machine with an H100 until it is ready: its status, what it printed."""

    async def stop_when_ready(server: Server) -> None:
        await server.ready.wait()
        server.request_stop()

    def run(**values: object) -> tuple[int, str]:
        given = {"model": str(tiny_package.path), "cache": tmp_path}
        status = main(make_settings(**given, **values))
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    tasks: list[Any] = []
    monkeypatch.setattr(
        "service.server._stop_on_signals",
        lambda server: tasks.append(asyncio.ensure_future(stop_when_ready(server))),
    )
    monkeypatch.setattr(
        "model.runtime.choice.installed_libraries",
        lambda: InstalledLibraries(tensorrt=True, onnx=frozenset({"cpu"})),
    )
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(
        "model.runtime.machine.this_hardware.__defaults__", (tmp_path, tmp_path, {})
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    handlers, level = logging.root.handlers[:], logging.root.level
    yield run
    logging.root.handlers, logging.root.level = handlers, level


# What the calls raise with MIG: nvidia-container-toolkit#842.
@pytest.mark.parametrize(
    ("refused", "sentence"),
    [
        ({}, "tensorrt on a GPU in fp32"),
        (
            {"nvmlDeviceGetMemoryInfo": "Insufficient Permissions"},
            "tipserve_gpu_memory_total_bytes: NVML says Insufficient Permissions",
        ),
        ({"nvmlDeviceGetCount": "Unknown Error"}, "NVML cannot list the GPUs (Unknown Error)"),
        ({"nvmlInit": "Not Found"}, "NVML does not start (Not Found)"),
    ],
)
def test_the_service_starts_without_what_nvml_does_not_give(
    start: Start, monkeypatch: pytest.MonkeyPatch, refused: dict[str, str], sentence: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(**refused))
    monkeypatch.setitem(RUNTIMES, "tensorrt", OnCpu)
    status, printed = start()
    assert (status, "Traceback" in printed) == (0, False), printed
    assert "tensorrt on a GPU" in printed
    assert sentence in printed


@pytest.mark.parametrize("fault", ["missing", "old driver"])
@pytest.mark.parametrize("runtime", ["auto", "tensorrt"])
def test_tensorrt_that_cannot_be_loaded_ends_the_start_only_if_it_is_asked_for(
    start: Start, monkeypatch: pytest.MonkeyPatch, fault: str, runtime: str
) -> None:
    words = ["the runtime 'tensorrt' needs TensorRT and cuda-python", "tipserve[gpu]"]
    if fault == "missing":
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    else:
        words = ["the GPU could not be asked what it is", "tipserve[gpu-cuda12]"]
        cuda = SimpleNamespace(
            cudaError_t=SimpleNamespace(cudaSuccess=0),
            cudaGetDeviceProperties=lambda _: (
                SimpleNamespace(name="cudaErrorInsufficientDriver"),
            ),
            cudaGetErrorString=lambda _: (0, b"CUDA driver version is insufficient"),
        )
        load = Mock(return_value=GpuLibraries(None, Cuda(cuda), Mock()))
        monkeypatch.setitem(RUNTIMES, "tensorrt", partial(TensorRtRuntime, load=load))
    status, printed = start(runtime=runtime)
    assert "Traceback" not in printed
    is_needed = runtime == "tensorrt"
    words += ["could not start: "] if is_needed else ["TensorRT is not used: ", "onnx on the CPU"]
    assert status == is_needed
    assert all(part in printed for part in words), printed


def test_a_runtime_without_usable_results_is_named(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, "tensorrt", OnCpu)
    monkeypatch.setattr("service.lanes.lane.Lane._has_shape", lambda *_: False)
    status, printed = start(runtime="tensorrt")
    assert (status, "Traceback" in printed) == (1, False), printed
    assert "could not start: the runtime 'tensorrt' gives no usable results" in printed
