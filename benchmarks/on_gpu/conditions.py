"""Measurement conditions to report with GPU numbers: card, clocks, driver and versions."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.on_gpu.place import Place

DISTRIBUTIONS = (
    "torch",
    "tensorrt",
    "cuda-python",
    "onnxruntime-gpu",
    "onnxruntime",
    "transformers",
    "numpy",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)


def conditions(place: Place) -> dict[str, Any]:
    """Return all available conditions."""
    found: dict[str, Any] = {
        "place": place.title,
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": dict(filter(None, map(_version, DISTRIBUTIONS))),
    }
    return found | (gpu_state() if place.is_gpu else {})


def gpu_state() -> dict[str, Any]:
    """Return current driver, clocks, power and temperature, or the reason why NVML fails."""
    try:
        import pynvml  # noqa: PLC0415 - comes with the extra gpu
    except ImportError:
        return {"nvml": "not installed: pip install 'tipserve[gpu]'"}
    try:
        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        readings = {
            "card": lambda: pynvml.nvmlDeviceGetName(card),
            "driver": pynvml.nvmlSystemGetDriverVersion,
            "memory_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(card).total,
            "sm_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_SM),
            "max_sm_clock_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(
                card, pynvml.NVML_CLOCK_SM
            ),
            "memory_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_MEM),
            "power_limit_w": lambda: pynvml.nvmlDeviceGetPowerManagementLimit(card) / 1000,
            "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(
                card, pynvml.NVML_TEMPERATURE_GPU
            ),
        }
        state = {name: _reading(pynvml, read) for name, read in readings.items()}
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return {"nvml": str(error)}
    return state


def _reading(pynvml: Any, read: Any) -> Any:
    """Read one value; in a container some are not available."""
    try:
        value = read()
    except pynvml.NVMLError as error:
        return str(error)
    return value.decode() if isinstance(value, bytes) else value


def _version(distribution: str) -> tuple[str, str] | None:
    try:
        return distribution, version(distribution)
    except PackageNotFoundError:
        return None
