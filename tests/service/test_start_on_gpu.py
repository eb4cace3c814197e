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


class NVMLError(Exception):
    """As the library's own."""


def refuse(reason: str) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise NVMLError(reason)

    return call


def nvml(**functions: Any) -> SimpleNamespace:
    """A stand-in for pynvml with one H100; `functions` replace its own."""
    readings = {
        "nvmlDeviceGetCudaComputeCapability": lambda _: (9, 0),
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80 << 30, used=1 << 30),
        "nvmlDeviceGetName": lambda _: "NVIDIA H100 80GB HBM3",
        "nvmlDeviceGetPowerUsage": lambda _: 350_000,
        "nvmlDeviceGetTemperature": lambda *_: 60,
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=25),
        "nvmlInit": lambda: None,
    }
    return SimpleNamespace(NVMLError=NVMLError, NVML_TEMPERATURE_GPU=0, **{**readings, **functions})


# What the calls raise there: nvidia-container-toolkit#842 (MIG), nvidia-cosmos#180 (GB10).
MIG = nvml(
    nvmlDeviceGetMemoryInfo=refuse("Insufficient Permissions"),
    nvmlDeviceGetUtilizationRates=refuse("Not Supported"),
)
GB10 = nvml(nvmlDeviceGetMemoryInfo=refuse("Not Supported"))
MUTE = nvml(**{name: refuse("Unknown Error") for name in vars(nvml()) if "DeviceGet" in name})
NO_NVML = nvml(nvmlInit=refuse("NVML Shared Library Not Found"))


class GpuMachine:
    """A machine with a stand-in of NVML, on which a service is started."""

    def __init__(self, start: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
        self._start, self._capsys = start, capsys

    def start(self, **values: object) -> tuple[int, str]:
        """Run a service until it is ready; returns the exit status and what it printed."""
        status = self._start(**values)
        printed = self._capsys.readouterr()
        return status, printed.out + printed.err


@pytest.fixture
def gpu_machine(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_settings: Callable[..., Settings],
    tiny_package: ModelPackage,
    tmp_path: Path,
) -> Iterator[GpuMachine]:
    given = {"model": str(tiny_package.path), "cache": tmp_path}

    async def stop_when_ready(server: Server) -> None:
        await server.ready.wait()
        server.request_stop()

    tasks: list[Any] = []
    monkeypatch.setattr(
        "service.server._stop_on_signals",
        lambda server: tasks.append(asyncio.ensure_future(stop_when_ready(server))),
    )
    monkeypatch.setattr(
        "model.runtime.choice.installed_libraries",
        lambda: InstalledLibraries(tensorrt=True, onnx=frozenset({"cpu"})),
    )
    found = GpuMachine(lambda **more: main(make_settings(**given, **more)), capsys)
    driver, device = tmp_path / "proc" / "driver/nvidia/gpus/0", tmp_path / "dev"
    driver.mkdir(parents=True)
    device.mkdir()
    (driver / "information").write_text("Model: NVIDIA H100\n")
    (device / "nvidia0").touch()
    monkeypatch.setattr(
        "model.runtime.machine.this_hardware.__defaults__", (tmp_path / "proc", device, {})
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    handlers, level = logging.root.handlers[:], logging.root.level
    yield found
    logging.root.handlers, logging.root.level = handlers, level


@pytest.mark.parametrize(
    ("driver", "sentence"),
    [
        (nvml(), "tensorrt on a GPU in fp32"),
        (MIG, "tipserve_gpu_memory_total_bytes: NVML says Insufficient Permissions"),
        (GB10, "tipserve_gpu_memory_total_bytes: NVML says Not Supported"),
        (MUTE, "NVML cannot list the GPUs (Unknown Error)"),
        (NO_NVML, "NVML does not start (NVML Shared Library Not Found)"),
    ],
    ids=["H100", "MIG", "GB10", "no permission at all", "no NVML"],
)
def test_the_service_starts_without_what_nvml_does_not_give(
    gpu_machine: GpuMachine, monkeypatch: pytest.MonkeyPatch, driver: Any, sentence: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setitem(RUNTIMES, "tensorrt", OnCpu)
    status, printed = gpu_machine.start()
    assert (status, "Traceback" in printed) == (0, False), printed
    assert "tensorrt on a GPU" in printed
    assert sentence in printed


class OnCpu(OnnxRuntime):
    """Computes on the CPU what TensorRT would compute."""

    name = "tensorrt"

    def __init__(self, package: ModelPackage, choice: RuntimeChoice, share: LaneShare) -> None:
        on_cpu = replace(choice, runtime="onnx", device="cpu")
        super().__init__(package, on_cpu, share)
        self.device = "gpu"


@pytest.fixture(params=["missing", "old driver"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is printed of a TensorRT that cannot be loaded."""
    if request.param == "missing":
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        return ["the runtime 'tensorrt' needs TensorRT and cuda-python", "tipserve[gpu]"]
    old = SimpleNamespace(name="cudaErrorInsufficientDriver")
    cuda = SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=0),
        cudaGetDeviceProperties=lambda _: (old,),
        cudaGetErrorString=lambda _: (0, b"CUDA driver version is insufficient"),
    )

    def load() -> GpuLibraries:
        return GpuLibraries(None, Cuda(cuda), Mock())

    monkeypatch.setitem(RUNTIMES, "tensorrt", partial(TensorRtRuntime, load=load))
    return ["the GPU could not be asked what it is", "tipserve[gpu-cuda12]"]


@pytest.mark.parametrize("runtime", ["auto", "tensorrt"])
def test_tensorrt_that_cannot_be_loaded_ends_the_start_only_if_it_is_asked_for(
    gpu_machine: GpuMachine, broken: list[str], runtime: str
) -> None:
    status, printed = gpu_machine.start(runtime=runtime)
    assert "Traceback" not in printed
    assert all(words in printed for words in broken), printed
    if runtime == "tensorrt":
        assert status == 1
        assert "could not start: " in printed
    else:
        assert status == 0
        assert "TensorRT is not used: " in printed
        assert "onnx on the CPU in fp32" in printed


def test_a_runtime_without_usable_results_is_named(
    gpu_machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, "tensorrt", OnCpu)
    monkeypatch.setattr("service.lanes.lane.Lane._has_shape", lambda *_: False)
    status, printed = gpu_machine.start(runtime="tensorrt")
    assert (status, "Traceback" in printed) == (1, False), printed
    assert "could not start: the runtime 'tensorrt' gives no usable results" in printed
