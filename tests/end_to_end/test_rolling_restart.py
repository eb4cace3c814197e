"""Replicas behind a proxy are replaced under load, and no request of either protocol fails."""

import signal

import pytest

from tests.processes.replicas import NUM_REPLICAS, Deletion
from tests.processes.rolling_restart import FAULTS, roll
from tests.tools import find_tool

ROUNDS = 4


@pytest.mark.timeout(900)
def test_rolling_restarts_fail_nothing() -> None:
    replaced = NUM_REPLICAS * ROUNDS
    outcome = roll(find_tool("haproxy"), FAULTS["none"], num_replaced=replaced)
    assert not outcome.failed
    assert outcome.exit_statuses == {0: replaced}
    assert outcome.num_repeated == 0, "or the proxy hides failures"
    # The stream is on the stopped replica about every second time.
    assert outcome.num_streams > ROUNDS / 2
    assert set(outcome.answered) == {"REST", "gRPC", "stream"}
    assert min(outcome.answered.values()) > 10 * ROUNDS


def test_health_checks_alone_divert_requests_within_the_drain_delay() -> None:
    # As on plain machines, where the proxy is not notified.
    unannounced = Deletion(pre_stop_s=0.0, notice_s=None)
    flags = ("--drain-delay-s=2",)
    outcome = roll(
        find_tool("haproxy"), unannounced, num_replaced=1, flags=flags, check_interval="200ms"
    )
    assert not outcome.failed
    assert outcome.exit_statuses == {0: 1}
    assert outcome.num_repeated == 0


@pytest.mark.parametrize(
    ("fault", "status", "protocols"),
    [
        ("kill", -signal.SIGKILL, {"REST", "gRPC"}),
        ("no-drain", -signal.SIGKILL, {"REST"}),
        ("no-pre-stop", 0, {"REST", "gRPC"}),
    ],
)
def test_failures_are_seen(fault: str, status: int, protocols: set[str]) -> None:
    outcome = roll(find_tool("haproxy"), FAULTS[fault], num_replaced=2)
    assert outcome.exit_statuses == {status: 2}
    failed = {name.split()[0] for name in outcome.failed}
    assert failed >= protocols
    assert "stream" not in failed, "its client opens it again"
