"""What a run under a traffic step comes to: refusals, worst p99, time to recover, pods too many."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from benchmarks.autoscaling.scenario import BIN_S, Bin, Run, quantile

# Recovered is what stays well for so long.
CALM_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of one run.

    Attributes:
        before_p99_s: Of all requests before the step.
        worst_p99_s: Of the worst ten seconds after it.
        late_share: Of those offered in the step, answered later than the limit.
        refused_share: Of those offered in the step.
        recovered_s: From the step until p99 stays below the limit and nobody is refused; infinite
            where that never was.
        before: Replicas when the step came.
        peak: Most replicas.
        mean_replicas: Over the step.
        reversals: How often it went up again after it had gone down.
    """

    before_p99_s: float
    worst_p99_s: float
    late_share: float
    refused_share: float
    recovered_s: float
    before: int
    peak: int
    mean_replicas: float
    reversals: int


def summarize(run: Run, step_s: float, until_s: float, limit_s: float) -> Summary:
    """Look at a run whose load stepped up at `step_s` and down again at `until_s`."""
    during = [b for b in run.bins if step_s <= b.start_s < until_s]
    asked = [o for o in run.outcomes if step_s <= o.arrived < until_s]
    before = [o.latency_s for o in run.outcomes if o.arrived < step_s and o.latency_s is not None]
    refused = sum(o.latency_s is None for o in asked)
    late = sum(o.latency_s is not None and o.latency_s > limit_s for o in asked)
    return Summary(
        before_p99_s=quantile(before, 0.99),
        worst_p99_s=max((b.p99_s for b in during if not math.isnan(b.p99_s)), default=math.nan),
        late_share=late / max(1, len(asked)),
        refused_share=refused / max(1, len(asked)),
        recovered_s=_recovered_s(during, limit_s),
        before=next(b.replicas for b in run.bins if b.start_s >= step_s),
        peak=max(b.replicas for b in run.bins),
        mean_replicas=sum(b.replicas for b in during) / max(1, len(during)),
        reversals=_reversals([b.replicas for b in run.bins if b.start_s >= step_s]),
    )


def _recovered_s(during: Sequence[Bin], limit_s: float) -> float:
    """The first moment from which a minute is well."""
    needed = int(CALM_S / BIN_S)
    calm = 0
    for index, moment in enumerate(during):
        is_well = not moment.refused and not moment.p99_s > limit_s
        calm = calm + 1 if is_well else 0
        if calm == needed:
            return (index + 1 - needed) * BIN_S
    return math.inf


def _reversals(replicas: Sequence[int]) -> int:
    count, has_fallen = 0, False
    for before, after in pairwise(replicas):
        if after < before:
            has_fallen = True
        elif after > before and has_fallen:
            count, has_fallen = count + 1, False
    return count


def median_of(summaries: Sequence[Summary]) -> Summary:
    """The middle of each number, of runs with several seeds."""
    middle = {
        name: sorted(getattr(s, name) for s in summaries)[len(summaries) // 2]
        for name in Summary.__dataclass_fields__
    }
    return Summary(**middle)
