"""Replicas behind a proxy are replaced under load, and no request of either protocol fails."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.processes.callers import SMALL, SteadyCallers
from tests.processes.front import Front
from tests.processes.server import LIMIT_S, Place, Server, start_server
from tipserve_client import Client

pytestmark = pytest.mark.alone
NUM_REPLICAS = 2
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


def wait_until_streamed(replicas: Sequence[Server]) -> None:
    """The client of a stream pauses before it opens it again."""
    latest = time.monotonic() + LIMIT_S
    while not any(map(has_streamed, replicas)):
        assert time.monotonic() < latest, "no replica answers the stream"
        time.sleep(0.1)


@pytest.mark.timeout(900)
def test_rolling_restarts_fail_nothing(tmp_path: Path) -> None:
    """A new replica becomes ready and gets requests; then the oldest is deleted."""
    with ExitStack() as stack:
        serving = [stack.enter_context(start_server(*FLAGS)) for _ in range(NUM_REPLICAS)]
        num_streaming = 0

        def places() -> list[tuple[int, int]]:
            return [(one.ports["http"], one.ports["grpc"]) for one in serving]

        front = stack.enter_context(Front(tmp_path, *places()))
        with (
            streaming(front.place) as streamed,
            SteadyCallers(front.place, heeds=False) as callers,
        ):
            callers.wait_for(20)
            wait_until_streamed(serving)
            for _ in range(NUM_REPLICAS):
                serving.append(stack.enter_context(start_server(*FLAGS)))
                oldest = serving.pop(0)
                front.reload(*places())
                callers.wait_for(20)
                num_streaming += has_streamed(oldest)
                oldest.process.terminate()
                assert oldest.process.wait(LIMIT_S) == 0
                callers.wait_for(20)
            wait_until_streamed(serving)
            num_streaming += sum(map(has_streamed, serving))
    assert not callers.others, callers.others[:3]
    # The stream began on a replica that is gone; its client opened it again.
    assert num_streaming > 1
    assert streamed == list(range(len(streamed)))
    assert len(streamed) > 10
