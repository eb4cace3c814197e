"""Adds up the metrics of several processes as if they were one.

prometheus_client's own multiprocess mode keeps no collectors and no functions of gauges, which most
metrics of `service.monitoring.metrics` are.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar, Sample

# All other gauges add up, such as lanes and bytes. These are the same in every process, or the
# worst and the latest of them tells more.
LARGEST: Final = frozenset(
    {
        "process_max_fds",
        "process_open_fds",
        "process_start_time_seconds",
        "tipserve_build_info",
        "tipserve_first_ready_timestamp_seconds",
        "tipserve_memory_limit_bytes",
        "tipserve_model_info",
        "tipserve_model_load_seconds",
        "tipserve_model_queue_oldest_seconds",
        "tipserve_queue_oldest_seconds",
    }
)
# Every process reads the same GPUs.
LARGEST_PREFIX: Final = "tipserve_gpu_"

Key = tuple[str, tuple[tuple[str, str], ...]]


def add_up(sources: Iterable[Iterable[Metric]]) -> list[Metric]:
    """One family for each name, and one sample for each name and labels."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[Key, float]] = {}
    exemplars: dict[Key, Exemplar] = {}
    for source in sources:
        for family in source:
            families.setdefault(family.name, family)
            known = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sample.labels.items()))
                both = (known.get(key), sample.value)
                known[key] = _joined(family, *both)
                if sample.exemplar is not None:
                    exemplars[key] = _newer(exemplars.get(key), sample.exemplar)
    return [_family(family, values[name], exemplars) for name, family in families.items()]


def counts_only(families: Iterable[Metric]) -> list[Metric]:
    """The families that only grow; what a process counted stays true after its end."""
    return [family for family in families if family.type in {"counter", "histogram"}]


def _joined(family: Metric, known: float | None, value: float) -> float:
    if known is None:
        return value
    takes_largest = family.name in LARGEST or family.name.startswith(LARGEST_PREFIX)
    return max(known, value) if takes_largest else known + value


def _newer(known: Exemplar | None, found: Exemplar) -> Exemplar:
    return max(known or found, found, key=lambda one: float(one.timestamp or 0))


def _family(like: Metric, values: Mapping[Key, float], exemplars: Mapping[Key, Exemplar]) -> Metric:
    made = Metric(like.name, like.documentation, like.type)
    samples: Sequence[Sample] = [
        Sample(key[0], dict(key[1]), value, exemplar=exemplars.get(key))
        for key, value in values.items()
    ]
    made.samples.extend(samples)
    return made
