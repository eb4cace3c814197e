"""How deploy/README.md tells gRPC clients to balance: what it says spreads calls over replicas."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

LIMIT_S = 60.0
NUM_CALLS = 40


class Replica(health_pb2_grpc.HealthServicer):
    """Counts the calls that come to it."""

    def __init__(self, name: str, calls: "Counter[str]") -> None:
        self._name = name
        self._calls = calls

    def Check(self, request: object, context: object) -> object:  # noqa: N802 - its name in gRPC
        """Well."""
        del request, context
        self._calls[self._name] += 1
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture
def calls() -> "Counter[str]":
    return Counter()


@pytest.fixture
def target(calls: "Counter[str]") -> Iterator[str]:
    """Two replicas, as a headless Service's name would resolve to them."""
    servers, addresses = [], []
    for name in ("first", "second"):
        server = grpc.server(ThreadPoolExecutor(2))
        health_pb2_grpc.add_HealthServicer_to_server(Replica(name, calls), server)
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        server.start()
        servers.append(server)
    yield f"ipv4:{','.join(addresses)}"
    for server in servers:
        server.stop(None).wait(LIMIT_S)


def ask(channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    stub.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S, wait_for_ready=True)


def test_a_client_by_itself_stays_with_one_replica(target: str, calls: "Counter[str]") -> None:
    with grpc.insecure_channel(target) as channel:
        for _ in range(NUM_CALLS):
            ask(channel)
    assert len(calls) == 1


def test_a_client_as_the_page_has_it_asks_all(
    project_root: Path, target: str, calls: "Counter[str]"
) -> None:
    page = (project_root / "deploy" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"\(\"(grpc\.service_config)\", '(.+?)'\)", page)
    assert found
    with grpc.insecure_channel(target, [(found[1], found[2])]) as channel:
        give_up_s = time.monotonic() + LIMIT_S
        # The second may be connected a little later than the first.
        while len(calls) < 2 and time.monotonic() < give_up_s:
            ask(channel)
        calls.clear()
        for _ in range(NUM_CALLS):
            ask(channel)
    assert calls == {"first": NUM_CALLS // 2, "second": NUM_CALLS // 2}
