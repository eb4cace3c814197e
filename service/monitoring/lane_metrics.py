"""What is told of lanes when metrics are scraped: how they are, and what batches cost them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneReport:
    """One model's lanes.

    Attributes:
        model: Its name.
        states: How many lanes are in each state.
        costs: Intercept and slope in seconds, by the label of each bucket that was measured.
    """

    model: str
    states: Mapping[str, int]
    costs: Mapping[str, tuple[float, float]]


class LaneCollector(Collector):
    """Reads the lanes of what is served."""

    def __init__(self) -> None:
        self.reports: Callable[[], Iterable[LaneReport]] = tuple

    def collect(self) -> Iterator[Metric]:
        """A sample for each model and state, and two for each model and measured shape."""
        lanes = GaugeMetricFamily(
            "tipserve_lanes", "Lanes of a model, by how they are.", labels=["model", "state"]
        )
        intercept = GaugeMetricFamily(
            "tipserve_batch_cost_intercept_seconds",
            "What a batch takes apart from its items, as measured.",
            labels=["model", "bucket"],
        )
        slope = GaugeMetricFamily(
            "tipserve_batch_cost_slope_seconds",
            "What each item adds to its batch, as measured.",
            labels=["model", "bucket"],
        )
        for report in self.reports():
            for state, count in report.states.items():
                lanes.add_metric([report.model, state], count)
            for bucket, (intercept_s, slope_s) in report.costs.items():
                intercept.add_metric([report.model, bucket], intercept_s)
                slope.add_metric([report.model, bucket], slope_s)
        yield from (lanes, intercept, slope)
