"""What is told of each model when metrics are scraped: its lanes, its batches and what waits."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

BatchTotals = Mapping[int, tuple[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneReport:
    """One model's lanes and what is before them.

    Attributes:
        model: Its name.
        states: How many lanes are in each state.
        costs: Intercept and slope in seconds, by the label of each bucket that was measured.
        batches: By number of items, how many batches came out well, and their seconds together.
        num_waiting: Items that wait for a lane.
        oldest_s: Age of the oldest of them.
        admitted_patches: What the requests inside cost, and `max_admitted_patches` what fits.
        rejected: Requests that came to it and were refused at its door, by reason.
        abandoned: Items of it that were not computed, by reason.
        prompts: Looked up in its text cache, by what came of it.
    """

    model: str
    states: Mapping[str, int]
    costs: Mapping[str, tuple[float, float]]
    batches: BatchTotals = field(default_factory=dict)
    num_waiting: int = 0
    oldest_s: float = 0.0
    admitted_patches: int = 0
    max_admitted_patches: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    abandoned: Mapping[str, int] = field(default_factory=dict)
    prompts: Mapping[str, int] = field(default_factory=dict)


def _num_batches(report: LaneReport) -> float:
    return sum(count for count, _ in report.batches.values())


def _num_items(report: LaneReport) -> float:
    return sum(size * count for size, (count, _) in report.batches.items())


def _busy_s(report: LaneReport) -> float:
    return sum(seconds for _, seconds in report.batches.values())


Read = Callable[[LaneReport], float]

COUNTERS: Final[Sequence[tuple[str, str, Read]]] = (
    ("batches", "Batches that came out well.", _num_batches),
    ("batch_items", "Images and texts in batches that came out well.", _num_items),
    ("batch_seconds", "Time that lanes computed such batches, all lanes together.", _busy_s),
)
BY_LABEL: Final[Sequence[tuple[str, str, str, Callable[[LaneReport], Mapping[str, int]]]]] = (
    ("rejected", "Requests refused at its door.", "reason", lambda report: report.rejected),
    ("abandoned", "Queued items never computed.", "reason", lambda report: report.abandoned),
    ("prompts", "Prompts looked up in its cache.", "outcome", lambda report: report.prompts),
)
GAUGES: Final[Sequence[tuple[str, str, Read]]] = (
    ("queue_depth", "Items that wait for a lane.", lambda report: report.num_waiting),
    (
        "queue_oldest_seconds",
        "Age of the oldest item that waits for a lane.",
        lambda report: report.oldest_s,
    ),
    (
        "admitted_patches",
        "What all requests inside cost together.",
        lambda report: report.admitted_patches,
    ),
    (
        "max_admitted_patches",
        "What they may cost together before others are refused.",
        lambda report: report.max_admitted_patches,
    ),
)


class LaneCollector(Collector):
    """Reads the lanes of what is served."""

    def __init__(self) -> None:
        self.reports: Callable[[], Iterable[LaneReport]] = tuple

    def collect(self) -> Iterator[Metric]:
        """Samples for each model, its lanes' states and its measured shapes."""
        reports = list(self.reports())
        yield from _lanes_and_costs(reports)
        for name, text, read in COUNTERS:
            counter = CounterMetricFamily(f"tipserve_model_{name}", text, labels=["model"])
            for report in reports:
                counter.add_metric([report.model], read(report))
            yield counter
        for name, text, label, counts in BY_LABEL:
            counter = CounterMetricFamily(f"tipserve_model_{name}", text, labels=["model", label])
            for report in reports:
                for value, count in counts(report).items():
                    counter.add_metric([report.model, value], count)
            yield counter
        for name, text, read in GAUGES:
            gauge = GaugeMetricFamily(f"tipserve_model_{name}", text, labels=["model"])
            for report in reports:
                gauge.add_metric([report.model], read(report))
            yield gauge


def _lanes_and_costs(reports: Iterable[LaneReport]) -> Iterator[Metric]:
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
    for report in reports:
        for state, count in report.states.items():
            lanes.add_metric([report.model, state], count)
        for bucket, (intercept_s, slope_s) in report.costs.items():
            intercept.add_metric([report.model, bucket], intercept_s)
            slope.add_metric([report.model, bucket], slope_s)
    yield from (lanes, intercept, slope)
