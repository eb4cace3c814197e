"""GPUs are read at every scrape; no library, no driver and no sensor are no errors."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from service.monitoring.metrics import READINGS, Metrics, find_nvml


class FakeNvml(ModuleType):
    """Two GPUs, of which the second has no power sensor."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """As the library's own."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.percent = 25
        self.has_driver = True

    def nvmlInit(self) -> None:  # noqa: N802 - named by the library, as all below
        if not self.has_driver:
            raise self.NVMLError

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self.percent + gpu)

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=1000 + gpu, total=80_000)

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:  # noqa: N802
        if gpu == 1:
            raise self.NVMLError
        return 350_000

    def nvmlDeviceGetTemperature(self, gpu: int, sensor: int) -> int:  # noqa: N802
        return 60 + gpu + sensor


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_each_gpu_is_read_at_each_scrape(metrics: Metrics, nvml: FakeNvml) -> None:
    metrics.watch_gpus(find_nvml())
    sample = metrics.registry.get_sample_value
    assert sample("tipserve_gpu_utilization_ratio", {"gpu": "0"}) == 0.25
    nvml.percent = 75
    assert sample("tipserve_gpu_utilization_ratio", {"gpu": "1"}) == 0.76
    assert sample("tipserve_gpu_memory_used_bytes", {"gpu": "1"}) == 1001
    assert sample("tipserve_gpu_memory_total_bytes", {"gpu": "0"}) == 80_000
    assert sample("tipserve_gpu_power_watts", {"gpu": "0"}) == 350
    assert sample("tipserve_gpu_temperature_celsius", {"gpu": "0"}) == 60


def test_a_sensor_that_is_missing_costs_its_sample_only(metrics: Metrics, nvml: FakeNvml) -> None:
    metrics.watch_gpus(nvml)
    sample = metrics.registry.get_sample_value
    assert sample("tipserve_gpu_power_watts", {"gpu": "1"}) is None
    assert sample("tipserve_gpu_temperature_celsius", {"gpu": "1"}) == 61


def test_without_driver_or_library_there_are_no_gpu_metrics(
    metrics: Metrics, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.has_driver = False
    assert find_nvml() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_nvml() is None
    metrics.watch_gpus(find_nvml())
    names = {family.name for family in metrics.registry.collect()}
    assert not names & {name for name, _, _ in READINGS}


def test_the_real_library_has_what_is_asked_of_it() -> None:
    pynvml = pytest.importorskip("pynvml", reason="comes with the extra `gpu`")
    names = [name for name in vars(FakeNvml) if name.startswith(("nvml", "NVML"))]
    assert not [name for name in names if not hasattr(pynvml, name)]
