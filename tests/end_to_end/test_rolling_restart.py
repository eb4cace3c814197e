"""Replicas behind a proxy are replaced under load, and no request of either protocol fails."""

import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.processes.callers import SMALL, SteadyCallers
from tests.processes.proxy import Proxy
from tests.processes.server import LIMIT_S, Place, Server, start_server
from tipserve_client import Client

pytestmark = pytest.mark.alone
NUM_REPLICAS = 2
# The proxy is told that a replica is deleted, and `preStop` sleeps a little longer.
NOTICE_S, PRE_STOP_S = 0.3, 0.32
# The callers repeat one image: from the cache they would exceed the proxy's limit of an address.
FLAGS = ("--model=bundled-student", "--lanes=1", "--max-batch-images=1", "--image-cache-bytes=0")
STREAMED = {"protocol": "grpc", "method": "tipserve.v1.EncoderService/Stream", "code": "OK"}


@contextmanager
def streaming(place: Place) -> Iterator[list[int]]:
    """Send images on an endless stream; at the end, the list has the numbers of those answered."""
    is_over, found = threading.Event(), list[int]()

    def images() -> Iterator[bytes]:
        while not is_over.wait(0.05):
            yield SMALL

    with Client(f"grpc://{place.grpc}") as client, ThreadPoolExecutor() as pool:
        asking = pool.submit(lambda: list(client.stream_images(images())))
        try:
            yield found
        finally:
            is_over.set()
        found += [item.index for item in asking.result() if not item.error]


def has_streamed(replica: Server) -> bool:
    """Whether it has answered a request of the stream."""
    return replica.metric("tipserve_requests_total", **STREAMED) > 0


def stop(proxy: Proxy, slot: int, replica: Server) -> None:
    """Delete a replica as Kubernetes does; it drains and exits with 0."""
    time.sleep(NOTICE_S)
    proxy.take_out(slot)
    time.sleep(PRE_STOP_S - NOTICE_S)
    replica.process.terminate()
    assert replica.process.wait(LIMIT_S) == 0


@pytest.mark.timeout(900)
def test_rolling_restarts_fail_nothing() -> None:
    """A new replica becomes ready and gets requests; then the oldest is deleted."""
    with ExitStack() as stack:
        # The path of the admin socket must be short.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        proxy = stack.enter_context(Proxy(folder))
        serving: dict[int, Server] = {}
        num_streaming = 0

        def add() -> None:
            slot = min({*range(1, NUM_REPLICAS + 2)} - serving.keys())
            serving[slot] = stack.enter_context(start_server(*FLAGS))
            proxy.put_in(slot, serving[slot])

        for _ in range(NUM_REPLICAS):
            add()
        place = Place({"http": proxy.http_port, "grpc": proxy.grpc_port})
        with streaming(place) as streamed, SteadyCallers(place, heeds=False) as callers:
            callers.wait_for(20)
            for _ in range(NUM_REPLICAS):
                add()
                oldest = next(iter(serving))
                num_streaming += has_streamed(serving[oldest])
                stop(proxy, oldest, serving.pop(oldest))
                callers.wait_for(20)
            num_streaming += sum(map(has_streamed, serving.values()))
        num_repeated = proxy.total("wretr") + proxy.total("wredis")
    assert not callers.others
    assert num_repeated == 0, "or the proxy hides failures"
    # The stream began on a replica that is gone; its client opened it again.
    assert num_streaming > 1
    assert streamed == list(range(len(streamed)))
    assert len(streamed) > 10
