"""A server that has warmed up grows no further: blocks of the same mixed requests are compared.

Every figure is taken after a collection and a trim in the server, so that what is left is in use.
"""

import asyncio
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import pytest

from service.grpc.generated import embed_pb2, encoder_service_pb2_grpc, image_pb2
from tests.processes.service_process import RunningService, wait_until_ready
from tests.promises.servers import photo

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
# What one request may leave on average. A leaked image has 50,000 bytes or more, a leaked call
# some dozen objects.
MAX_LEFT_BYTES = 25_000
MAX_LEFT_OBJECTS = 1.0
# The text cache is so small that the warm-up fills it. At the signal the server collects garbage,
# trims its heap, and writes the number of its objects.
PROGRAM = """
import gc, json, signal, sys
from pathlib import Path
from service.__main__ import run
from service.machine import collect_and_trim
from service.models import loading

loading.TEXT_CACHE_BYTES = 100_000

path = Path(sys.argv.pop(1))

def report(*_):
    collect_and_trim()
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(len(gc.get_objects())))
    whole.rename(path)

signal.signal(signal.SIGUSR1, report)
sys.exit(run())
"""


class State(NamedTuple):
    """What a server without requests holds."""

    rss_bytes: int
    num_objects: int
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
    service: RunningService, rest: Iterator[tuple[str, bytes, str]], num_requests: int
) -> Counter[str]:
    """Send requests; one in ten over gRPC, one in twenty hangs up."""
    counts: Counter[str] = Counter()
    drawn = random.Random(0)
    are_few = asyncio.Semaphore(MAX_OPEN)
    limits = httpx.Limits(max_keepalive_connections=0)
    asked = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=IMAGES[2])])
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel,
        httpx.AsyncClient(base_url=service.http_url, timeout=LIMIT_S, limits=limits) as client,
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


def measure(service: RunningService, report: Path) -> State:
    """Make the server collect and trim, and read what it holds."""
    report.unlink(missing_ok=True)
    service.process.send_signal(signal.SIGUSR1)
    until = time.monotonic() + LIMIT_S
    while not report.exists():
        assert time.monotonic() < until, "the server does not react to a signal"
        time.sleep(0.05)
    status = Path(f"/proc/{service.pid}/status").read_text(encoding="ascii")
    return State(
        rss_bytes=int(status.partition("VmRSS:")[2].split()[0]) * 1024,
        num_objects=json.loads(report.read_text(encoding="utf-8")),
        num_threads=int(status.partition("Threads:")[2].split()[0]),
        num_descriptors=len(os.listdir(f"/proc/{service.pid}/fd")),
    )


def settled(service: RunningService, report: Path) -> State:
    """The least of each figure once no request is left: connections close after their answers."""
    until = time.monotonic() + LIMIT_S
    while service.metric("tipserve_inflight"):
        assert time.monotonic() < until, "requests are still in flight"
        time.sleep(0.1)
    states = []
    for _ in range(5):
        states.append(measure(service, report))
        time.sleep(0.3)
    return State(*map(min, zip(*states, strict=True)))


@pytest.mark.slow
def test_mixed_requests_leave_nothing(tmp_path: Path) -> None:
    report, ports_file = tmp_path / "objects.json", tmp_path / "ports.json"
    flags = ["--http-port=0", "--grpc-port=0", "--metrics-port=0", f"--ports-file={ports_file}"]
    flags += ["--model=bundled-student", "--log-level=ERROR"]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(report), *flags])
    try:
        service = wait_until_ready(process, ports_file)
        rest, counts, states = requests(), Counter[str](), []
        for num_requests in (WARM_UP, *[BLOCK] * NUM_BLOCKS):
            counts += asyncio.run(load(service, rest, num_requests))
            states.append(settled(service, report))
    finally:
        process.terminate()
        process.wait(LIMIT_S)
    assert set(counts) == {"200", "422", "gRPC OK", "hung up"}, counts
    first, *_, last = states
    # A leak adds to most blocks. An arena that grows for a larger batch adds once, and stays.
    added = [after.rss_bytes - before.rss_bytes for before, after in pairwise(states)]
    assert min(statistics.mean(added), statistics.median(added)) < BLOCK * MAX_LEFT_BYTES, states
    num_left = last.num_objects - first.num_objects
    assert num_left < NUM_BLOCKS * BLOCK * MAX_LEFT_OBJECTS, states
    assert last.num_threads <= first.num_threads, states
    assert last.num_descriptors <= first.num_descriptors, states
