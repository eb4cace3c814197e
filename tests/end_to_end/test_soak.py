"""A server that has warmed up grows no further: blocks of the same mixed requests are compared."""

import asyncio
import itertools
import os
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx

from service.grpc.generated import embed_pb2, encoder_service_pb2_grpc, image_pb2
from tests.promises.callers import until
from tests.promises.servers import Server, photo, start_server

MAX_OPEN = 16  # requests at a time
IMAGES = [photo(side, (side, side)) for side in (64, 224, 480, 640, 1600)]
TARGETS = (
    "/v1/images:embed",
    "/v1/images:segment?classes=dog,cat,sky",
    "/v1/images:segment?classes=dog,cat&mode=slide&format=polygons",
    "/v1/images:segment?classes=dog&include_scores=true&encoding=base64",
    "/v1/images:features?size=model",
    "/v1/images:classify?classes=dog,cat",
)
WARM_UP, NUM_BLOCKS, BLOCK = 300, 8, 150
LIMIT_S = 60.0
# What one request may leave on average. A leaked image has 50,000 bytes or more.
MAX_LEFT_BYTES = 25_000


class State(NamedTuple):
    """What a server without requests holds."""

    rss_bytes: int
    num_threads: int
    num_descriptors: int


def requests() -> Iterator[tuple[str, bytes, str]]:
    """Good and bad requests over REST, without end; every text is new."""
    for number in itertools.count():
        image = IMAGES[number % len(IMAGES)]
        yield TARGETS[number % len(TARGETS)], image, "image/jpeg"
        yield "/v1/images:embed", image[: len(image) // 2], "image/jpeg"
        text = f'{{"texts": ["a photo of number {number}"]}}'.encode()
        yield "/v1/texts:embed", text, "application/json"
        yield "/v1/texts:embed", b'{"texts": 1}', "application/json"


async def load(
    server: Server, rest: Iterator[tuple[str, bytes, str]], num_requests: int
) -> Counter[str]:
    """Send requests; one in ten over gRPC, one in twenty hangs up."""
    counts: Counter[str] = Counter()
    drawn = random.Random(0)
    are_few = asyncio.Semaphore(MAX_OPEN)
    limits = httpx.Limits(max_keepalive_connections=0)
    asked = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=IMAGES[2])])
    async with (
        grpc.aio.insecure_channel(server.grpc) as channel,
        httpx.AsyncClient(base_url=server.rest, timeout=LIMIT_S, limits=limits) as client,
    ):
        stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)

        async def send(kind: float) -> None:
            async with are_few:
                if kind < 0.1:
                    await stub.EmbedImages(asked, timeout=LIMIT_S)
                    counts["gRPC OK"] += 1
                    return
                target, body, media = next(rest)
                asking = client.post(target, content=body, headers={"Content-Type": media})
                if kind < 0.15:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(asking, 0.2 * (kind - 0.1))
                    counts["hung up"] += 1
                else:
                    counts[str((await asking).status_code)] += 1

        await asyncio.gather(*(send(drawn.random()) for _ in range(num_requests)))
    return counts


def settled(server: Server) -> State:
    """What is held once no request is left."""
    until(lambda: server.metric("tipserve_inflight") == 0, "no request is in flight")
    folder = Path(f"/proc/{server.process.pid}")
    status = (folder / "status").read_text(encoding="ascii")
    return State(
        rss_bytes=int(status.partition("VmRSS:")[2].split()[0]) * 1024,
        num_threads=int(status.partition("Threads:")[2].split()[0]),
        num_descriptors=len(os.listdir(folder / "fd")),
    )


def test_mixed_requests_leave_nothing() -> None:
    rest, counts, states = requests(), Counter[str](), []
    with start_server("--model=bundled-student", "--log-level=ERROR") as server:
        for num_requests in (WARM_UP, *[BLOCK] * NUM_BLOCKS):
            counts += asyncio.run(load(server, rest, num_requests))
            states.append(settled(server))
    assert set(counts) == {"200", "422", "gRPC OK", "hung up"}, counts
    first, *_, last = states
    # A leak adds to most blocks. An arena that grows for a larger batch adds once, and stays.
    added = [after.rss_bytes - before.rss_bytes for before, after in pairwise(states)]
    assert min(statistics.mean(added), statistics.median(added)) < BLOCK * MAX_LEFT_BYTES, states
    assert last.num_threads <= first.num_threads, states
    assert last.num_descriptors <= first.num_descriptors, states
