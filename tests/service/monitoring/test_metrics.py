"""Metrics of calls, models, devices and the process, as a scrape reads them."""

import asyncio
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from service.monitoring.metrics import Metrics, watching_loop_lag


def test_no_series_says_when_it_began(metrics: Metrics) -> None:
    metrics.calls.observe("POST /x", "200", 0.5, {"run": 0.25}, model="a")
    names = [s.name for family in metrics.registry.collect() for s in family.samples]
    assert names
    assert not [name for name in names if name.endswith("_created")]


class NVMLError(Exception):
    """As the library's own."""


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The library with two GPUs, of which the second has no power sensor."""

    def power(gpu: int) -> int:
        if gpu == 1:
            raise NVMLError("Not Supported")
        return 350_000

    made = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=int,
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=25 + gpu),
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=1000 + gpu, total=80_000),
        nvmlDeviceGetPowerUsage=power,
        nvmlDeviceGetTemperature=lambda gpu, sensor: 60 + gpu + sensor,
    )
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def test_each_gpu_is_read_at_each_scrape(metrics: Metrics, nvml: SimpleNamespace) -> None:
    metrics.watch_gpus()

    def read(name: str, gpu: int) -> float | None:
        return metrics.registry.get_sample_value(f"tipserve_gpu_{name}", {"gpu": str(gpu)})

    assert read("utilization_ratio", 0) == 0.25
    nvml.nvmlDeviceGetUtilizationRates = lambda gpu: SimpleNamespace(gpu=75 + gpu)
    assert read("utilization_ratio", 1) == 0.76
    assert (read("memory_used_bytes", 1), read("memory_total_bytes", 0)) == (1001, 80_000)
    assert (read("power_watts", 0), read("power_watts", 1)) == (350, None)
    assert (read("temperature_celsius", 0), read("temperature_celsius", 1)) == (60, 61)


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_that_refuses_leaves_the_other_metrics(
    metrics: Metrics, nvml: SimpleNamespace, caplog: pytest.LogCaptureFixture, function: str
) -> None:
    setattr(nvml, function, Mock(side_effect=NVMLError("Unknown Error")))
    caplog.set_level("INFO")
    metrics.watch_gpus()
    assert "NVML does not start (Unknown Error)" in caplog.text
    assert [family.name for family in metrics.registry.collect()]


async def test_a_blocked_event_loop_is_measured(metrics: Metrics) -> None:
    interval_s, blocked_s = 0.01, 0.05

    def lag_s() -> float:
        name, labels = "tipserve_event_loop_lag_seconds_sum", {"loop": "http"}
        return metrics.registry.get_sample_value(name, labels) or 0.0

    async with watching_loop_lag(metrics, "http", interval_s):
        await asyncio.sleep(0)
        time.sleep(blocked_s)
        assert metrics.stalled_loops(blocked_s / 2) == ["http"]
        async with asyncio.timeout(20):
            while not lag_s():
                await asyncio.sleep(interval_s)
    # The timer was due one interval after the start, and the loop was blocked for all of it.
    assert lag_s() >= blocked_s - interval_s - 0.001
    assert metrics.stalled_loops(0.0) == [], "a loop that has ended does not stall"
