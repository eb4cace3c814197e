"""The service starts on GPUs whose driver refuses details, or says in a sentence why it cannot."""

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.package import ModelPackage
from model.runtime.machine import InstalledLibraries
from service.server import Server, main
from service.settings import Settings
from tests.model.runtime.tensorrt.stand_in_cuda import StandInCuda
from tests.model.runtime.tensorrt.stand_in_tensorrt import StandInTensorRt


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
    """A machine with stand-ins of NVML, CUDA and TensorRT, on which a service is started."""

    def __init__(self, start: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
        self.cuda = StandInCuda()
        self.trt = StandInTensorRt(self.cuda)
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
    given = {"model": str(tiny_package.path), "cache": tmp_path, "log_format": "text"}

    async def stop_when_ready(server: Server) -> None:
        await server.ready.wait()
        server.request_stop()

    tasks: list[Any] = []
    monkeypatch.setattr(
        "service.server._stop_on_signals",
        lambda server: tasks.append(asyncio.ensure_future(stop_when_ready(server))),
    )
    monkeypatch.setattr(
        "model.runtime.choice.installed_libraries", lambda: InstalledLibraries(tensorrt=True)
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
    monkeypatch.setitem(sys.modules, "tensorrt", found.trt)
    bindings = SimpleNamespace(runtime=found.cuda)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=bindings))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
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
    status, printed = gpu_machine.start()
    assert (status, "Traceback" in printed) == (0, False), printed
    assert "tensorrt on a GPU" in printed
    assert sentence in printed


def test_a_missing_library_is_named_with_the_extra(
    gpu_machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    status, printed = gpu_machine.start()
    assert (status, "Traceback" in printed) == (1, False), printed
    assert "could not start: the runtime 'tensorrt' needs TensorRT and cuda-python" in printed
    assert "tipserve[gpu]" in printed


def test_an_old_driver_is_named_with_the_extra_for_it(gpu_machine: GpuMachine) -> None:
    too_old = gpu_machine.cuda.cudaError_t.cudaErrorInsufficientDriver
    gpu_machine.cuda.failing = dict.fromkeys(range(9), too_old)
    status, printed = gpu_machine.start()
    assert (status, "Traceback" in printed) == (1, False), printed
    assert "could not start: the GPU could not" in printed
    assert "tipserve[gpu-cuda12]" in printed


def test_a_full_gpu_is_named(gpu_machine: GpuMachine) -> None:
    gpu_machine.cuda.memory_bytes = 8_000
    status, printed = gpu_machine.start()
    assert (status, "Traceback" in printed) == (1, False), printed
    assert "could not start: the GPU could not reserve" in printed
    assert "the GPU's memory is full" in printed


def test_batches_are_planned_by_the_memory_that_cuda_reports(gpu_machine: GpuMachine) -> None:
    gpu_machine.cuda.memory_bytes = 1 << 34
    status, printed = gpu_machine.start()
    assert (status, "Traceback" in printed) == (0, False), printed
    (line,) = (line for line in printed.splitlines() if "peak_bytes" in line)
    assert "image 56x56" in line.partition("peak_bytes")[2], line
    assert "cudaMemGetInfo" in gpu_machine.cuda.called


def test_a_runtime_without_usable_results_is_named(
    gpu_machine: GpuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.lanes.lane.Lane._has_shape", lambda *_: False)
    status, printed = gpu_machine.start()
    assert (status, "Traceback" in printed) == (1, False), printed
    assert "could not start: the runtime 'tensorrt' gives no usable results" in printed
