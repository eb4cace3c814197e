"""The queries that an autoscaler may be given, each in PromQL and as this simulation computes it.

A query that is none of these is an error: what is shipped has been simulated, or it is not shipped.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.autoscaling.prometheus import Prometheus
from benchmarks.autoscaling.replica import Counters
from service.monitoring.metrics import SECONDS

Compute = Callable[[Prometheus, "Parameters"], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What a query leaves open.

    Attributes:
        lanes: Of each replica.
        window_s: Of its rates.
        quantile: Of its histogram.
    """

    lanes: int
    window_s: float = 60.0
    quantile: float = 0.5


@dataclass(frozen=True, slots=True)
class Signal:
    """A family of queries: `{S}` is any selector but an empty one, `[W]` any window."""

    name: str
    promql: str
    compute: Compute


@dataclass(frozen=True, slots=True)
class Query:
    """A query that is known, with what it leaves open filled in."""

    signal: Signal
    parameters: Parameters
    ceiling: float = math.inf

    def value(self, prometheus: Prometheus) -> float:
        """As Prometheus would answer it now."""
        return min(self.ceiling, self.signal.compute(prometheus, self.parameters))


def _wait_mean(prometheus: Prometheus, asked: Parameters) -> float:
    waited = sum(prometheus.rates(lambda told: told.queue_sum_s, asked.window_s))
    count = sum(prometheus.rates(lambda told: float(told.answered), asked.window_s))
    return waited / max(count, 0.001)


def _wait_quantile(prometheus: Prometheus, asked: Parameters) -> float:
    counts = [
        sum(prometheus.rates(_bucket(index), asked.window_s)) for index in range(len(SECONDS) + 1)
    ]
    return histogram_quantile(asked.quantile, counts)


def _bucket(index: int) -> Callable[[Counters], float]:
    return lambda told: float(told.queue_counts[index])


def histogram_quantile(quantile: float, counts: Sequence[float]) -> float:
    """As PromQL's function of the service's buckets; 0 where nothing was counted.

    Args:
        quantile: Between 0 and 1.
        counts: Of each bucket alone, the last without an upper bound.
    """
    total = sum(counts)
    if total <= 0:
        return 0.0
    below, rank = 0.0, quantile * total
    for index, upper in enumerate(SECONDS):
        if below + counts[index] >= rank and counts[index] > 0:
            lower = SECONDS[index - 1] if index else 0.0
            return lower + (upper - lower) * (rank - below) / counts[index]
        below += counts[index]
    return float(SECONDS[-1])


def _busy_share(prometheus: Prometheus, asked: Parameters) -> float:
    busy = sum(prometheus.rates(lambda told: told.busy_s, asked.window_s))
    num_pods = len(prometheus.latest(lambda told: told.busy_s))
    return busy / max(1, asked.lanes * num_pods)


def _inflight_mean(prometheus: Prometheus, _: Parameters) -> float:
    told = prometheus.latest(lambda told: float(told.inflight))
    return sum(told) / max(1, len(told))


def _oldest_mean(prometheus: Prometheus, _: Parameters) -> float:
    told = prometheus.latest(lambda told: told.oldest_s)
    return sum(told) / max(1, len(told))


STAGE: Final = "tipserve_stage_duration_seconds"
SIGNALS: Final = (
    Signal(
        "mean queue wait",
        f"sum(rate({STAGE}_sum{{S}}[W])) / clamp_min(sum(rate({STAGE}_count{{S}}[W])), 0.001)",
        _wait_mean,
    ),
    Signal(
        "queue wait quantile",
        f"histogram_quantile(Q, sum by (le) (rate({STAGE}_bucket{{S}}[W]))) >= 0 or vector(0)",
        _wait_quantile,
    ),
    Signal(
        "busy share of lanes",
        "sum(rate(tipserve_model_batch_seconds_total{S}[W])) / "
        "clamp_min(sum(tipserve_lanes{S}), 1)",
        _busy_share,
    ),
    Signal("requests in flight", "avg(tipserve_inflight{S}) or vector(0)", _inflight_mean),
    Signal("oldest item", "avg(tipserve_queue_oldest_seconds{S}) or vector(0)", _oldest_mean),
)
QUEUE_SELECTOR: Final = re.compile(r'stage="queue"')
READY_SELECTOR: Final = re.compile(r'state="ready"')
UNITS_S: Final = {"s": 1, "m": 60, "h": 3600}
CEILING: Final = re.compile(r"clamp_max\((.*),\s*([\d.]+)\)")


class UnknownQueryError(ValueError):
    """A query that was not simulated."""


def understand(promql: str, lanes: int) -> Query:
    """Find what a query asks for.

    Raises:
        UnknownQueryError: It is none of `SIGNALS`, or its parts do not agree.
    """
    text = re.sub(r"\s+", " ", promql).strip()
    ceiling = math.inf
    if match := CEILING.fullmatch(text):
        text, ceiling = match[1].strip(), float(match[2])
    for signal in SIGNALS:
        match = _pattern(signal.promql).fullmatch(_tight(text))
        if match is None:
            continue
        _check_selectors(text)
        windows = set(re.findall(r"\[(\d+)([smh])\]", text))
        if len(windows) > 1:
            raise UnknownQueryError(f"the windows of one query differ: {text}")
        window_s = sum(float(count) * UNITS_S[unit] for count, unit in windows)
        quantile = float(match.groupdict().get("q") or 0.5)
        asked = Parameters(lanes=lanes, window_s=window_s or 60.0, quantile=quantile)
        return Query(signal, asked, ceiling)
    known = "\n".join(signal.promql for signal in SIGNALS)
    raise UnknownQueryError(f"this query is not simulated: {text}\nknown are:\n{known}")


def _check_selectors(text: str) -> None:
    """What belongs to the query's meaning and lies in its selectors."""
    selectors = re.findall(r"(\w+)\{([^}]*)\}", text)
    for name, selector in selectors:
        if name.startswith(STAGE) and not QUEUE_SELECTOR.search(selector):
            raise UnknownQueryError(f'{name} needs stage="queue" here: {text}')
        if name == "tipserve_lanes" and not READY_SELECTOR.search(selector):
            raise UnknownQueryError(f'{name} needs state="ready" here: {text}')


def _tight(text: str) -> str:
    """Without the spaces that mean nothing."""
    return re.sub(r"\s*([(){}\[\],/])\s*", r"\1", text)


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(_tight(template))
    escaped = escaped.replace(re.escape("{S}"), r"\{[^}]+\}").replace(
        re.escape("[W]"), r"\[\d+[smh]\]"
    )
    return re.compile(escaped.replace(r"\(Q,", r"\((?P<q>[\d.]+),"))
