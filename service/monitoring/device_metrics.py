"""How busy the GPUs are, as NVIDIA's management library says when it is asked at a scrape.

All GPUs that this process can see, by their index; in a container these are the ones it was given.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Read = Callable[[Any, Any], float]

READINGS: Final[tuple[tuple[str, str, Read], ...]] = (
    (
        "tipserve_gpu_utilization_ratio",
        "Share of the last moments in which the GPU computed anything.",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    (
        "tipserve_gpu_memory_used_bytes",
        "Memory of the GPU that is taken, by any process.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    (
        "tipserve_gpu_memory_total_bytes",
        "Memory of the GPU.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    (
        "tipserve_gpu_power_watts",
        "Power that the GPU draws.",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
    (
        "tipserve_gpu_temperature_celsius",
        "Temperature of the GPU.",
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    ),
)

logger = logging.getLogger(__name__)


class GpuCollector(Collector):
    """Reads all GPUs when it is scraped; what a GPU does not tell has no sample."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._gpus = [
            nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())
        ]

    def collect(self) -> Iterator[Metric]:
        """One sample for each reading and GPU."""
        for name, text, read in READINGS:
            family = GaugeMetricFamily(name, text, labels=["gpu"])
            for index, gpu in enumerate(self._gpus):
                try:
                    family.add_metric([str(index)], read(self._nvml, gpu))
                except self._nvml.NVMLError:
                    # Not every GPU has every sensor, and one may fall off its bus.
                    logger.debug("GPU %d does not tell %s", index, name)
            yield family


def find_nvml() -> Any:
    """The management library where it is installed and finds a driver, else None."""
    try:
        import pynvml  # noqa: PLC0415 - comes with the extra `gpu` only
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
