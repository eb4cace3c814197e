"""Replicas behind a proxy are replaced under load, and no request of either protocol fails."""

import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes.proxy import Proxy
from tests.processes.replicas import NUM_REPLICAS, Deletion, Replicas
from tests.promises.callers import PROTOCOLS, SMALL, SteadyCallers
from tests.promises.servers import Place
from tests.tools import find_tool
from tipserve_client import Client

ROUNDS = 2
FLAGS = ("--model=bundled-student", "--host=127.0.0.1", "--lanes=1", "--warm-up-limit-s=0")
STREAM_PATH = "/tipserve.v1.EncoderService/Stream"


@dataclass(frozen=True)
class Outcome:
    """What the callers saw, the replicas' exit statuses, and what the proxy counted."""

    callers: SteadyCallers
    streamed: Sequence[int]
    exit_statuses: dict[int, int]
    num_streams: int
    num_repeated: int


@contextmanager
def streaming(address: str) -> Iterator[list[int]]:
    """Images on an endless stream; the list grows by the numbers of those answered."""
    is_over, found = threading.Event(), list[int]()

    def images() -> Iterator[bytes]:
        while not is_over.wait(0.05):
            yield SMALL

    def ask() -> None:
        with Client(f"grpc://{address}") as client:
            found.extend(item.index for item in client.stream_images(images()) if not item.error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


def roll(
    deletion: Deletion,
    *flags: str,
    num_replaced: int,
    check_interval: str = "2s",
) -> Outcome:
    """Replace replicas under load, the oldest each time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            Proxy(find_tool("haproxy"), folder, check_interval=check_interval) as proxy,
            Replicas(proxy, folder, [*FLAGS, *flags], num_replaced=num_replaced) as replicas,
        ):
            rest, rpc = (f"127.0.0.1:{proxy.ports[name]}" for name in ("http", "grpc"))
            place = Place(f"http://{rest}", rpc, "")
            with streaming(rpc) as streamed, SteadyCallers(place, heeds=False) as callers:
                callers.wait_for(20)
                for _ in range(num_replaced):
                    replicas.replace_oldest(deletion)
                    callers.wait_for(20)
            repeated = proxy.total("wretr") + proxy.total("wredis")
            streams = proxy.num_logged(STREAM_PATH)
        return Outcome(callers, streamed, dict(replicas.exit_statuses), streams, repeated)


@pytest.mark.timeout(900)
def test_rolling_restarts_fail_nothing() -> None:
    replaced = NUM_REPLICAS * ROUNDS
    outcome = roll(Deletion(), num_replaced=replaced)
    assert not outcome.callers.others
    assert outcome.exit_statuses == {0: replaced}
    assert outcome.num_repeated == 0, "or the proxy hides failures"
    # The stream is on the stopped replica about every second time; its client opens it again.
    assert outcome.num_streams > ROUNDS / 2
    assert outcome.streamed == list(range(len(outcome.streamed)))
    assert len(outcome.streamed) > 10 * ROUNDS


def test_health_checks_alone_divert_requests_within_the_drain_delay() -> None:
    # As on plain machines, where the proxy is not notified.
    unannounced = Deletion(pre_stop_s=0.0, notice_s=None)
    outcome = roll(unannounced, "--drain-delay-s=2", num_replaced=1, check_interval="200ms")
    assert not outcome.callers.others
    assert outcome.exit_statuses == {0: 1}
    assert outcome.num_repeated == 0


def test_failures_are_seen() -> None:
    # A pod that dies: no drain, and the proxy is told afterwards.
    killed = Deletion(pre_stop_s=0.0, notice_s=1.0, number=signal.SIGKILL)
    outcome = roll(killed, num_replaced=1)
    assert outcome.exit_statuses == {-signal.SIGKILL: 1}
    failed = {protocol for protocol, kind in outcome.callers.outcomes if kind != "served"}
    assert failed == set(PROTOCOLS)
    assert outcome.streamed == list(range(len(outcome.streamed)))
