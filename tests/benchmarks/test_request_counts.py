"""A request takes no more system calls and context switches than when the bounds were set."""

import pytest

from benchmarks.request_counts import BOUNDS, measure

# Ends hangs; a traced server on a busy machine takes a minute.
LIMIT_S = 300


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(LIMIT_S)
def test_a_request_costs_few_switches_and_system_calls() -> None:
    for protocol, counts in measure().items():
        max_switches, max_calls = BOUNDS[protocol]
        assert counts.switches <= max_switches, (protocol, counts)
        assert counts.system_calls <= max_calls, (protocol, counts)
