"""Resident memory, threads and descriptors of a server under constant load.

Claim: after two hours the last quarter is within noise of the second: nothing leaks.
`tests/end_to_end/test_soak.py` sends some hundred of the same requests and counts objects too.
Run: python -m benchmarks.soak --minutes 120 [--rate 10]
"""

import argparse
import asyncio
import io
import itertools
import math
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from PIL import Image

from benchmarks.batch_latency import photo_like_jpeg
from benchmarks.load import RestConnection, rest_request
from benchmarks.service_process import RunningService, running_service
from service.grpc.generated import embed_pb2, encoder_service_pb2_grpc, image_pb2

# Most requests at a time.
MAX_OPEN = 16
SIDES = (64, 224, 640, 1600)
# Quarters of the run whose medians may differ by this factor.
NOISE = 1.1
NUM_QUARTERS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at one moment."""

    rss_mib: float
    num_threads: int
    num_descriptors: int


def sample(pid: int) -> Sample:
    """Read what a process holds."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return Sample(
        rss_mib=int(status.partition("VmRSS:")[2].split()[0]) / 1024,
        num_threads=int(status.partition("Threads:")[2].split()[0]),
        num_descriptors=len(os.listdir(f"/proc/{pid}/fd")),
    )


def requests() -> Iterator[bytes]:
    """Good and bad requests over REST, without end; every text is new."""
    images = [photo_like_jpeg(seed) for seed in range(4)]
    for side in SIDES:
        stream = io.BytesIO()
        noise = np.random.default_rng(side).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        Image.fromarray(noise).resize((side, side)).save(stream, "JPEG")
        images.append(stream.getvalue())
    targets = (
        "/v1/images:embed",
        "/v1/images:segment?classes=dog,cat,sky",
        "/v1/images:segment?classes=dog,cat&mode=slide&format=polygons",
        "/v1/images:segment?classes=dog&include_scores=true&encoding=base64",
        "/v1/images:features?size=model",
        "/v1/images:classify?classes=dog,cat",
    )
    for number in itertools.count():
        image = images[number % len(images)]
        yield rest_request(targets[number % len(targets)], image)
        yield rest_request("/v1/images:embed", image[: len(image) // 2])
        texts = f'{{"texts": ["a photo of number {number}"]}}'.encode()
        yield rest_request("/v1/texts:embed", texts, "application/json")
        yield rest_request("/v1/texts:embed", b'{"texts": 1}', "application/json")


async def load(
    service: RunningService, rest: Iterator[bytes], num_requests: int, rate: float = math.inf
) -> Counter[str]:
    """Send requests, at most so many a second; one in ten over gRPC, one in twenty hangs up."""
    counts: Counter[str] = Counter()
    drawn = random.Random(0)
    image = photo_like_jpeg(9)
    are_few = asyncio.Semaphore(MAX_OPEN)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)

        async def over_grpc() -> None:
            request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=image)])
            await stub.EmbedImages(request, timeout=60)
            counts["gRPC OK"] += 1

        async def over_rest() -> None:
            connection = await RestConnection.open(service.http_port)
            counts[await connection.ask(next(rest))] += 1
            connection.close()

        async def hang_up() -> None:
            connection = await RestConnection.open(service.http_port)
            asking = asyncio.ensure_future(connection.ask(next(rest)))
            await asyncio.sleep(0.01 * drawn.random())
            connection.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await asking
            counts["hung up"] += 1

        kinds: Sequence[Callable[[], Awaitable[None]]] = (
            [over_rest] * 17 + [over_grpc] * 2 + [hang_up]
        )

        async def send(due: float) -> None:
            async with are_few:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                try:
                    await kinds[drawn.randrange(len(kinds))]()
                except (OSError, grpc.RpcError) as error:
                    counts[type(error).__name__] += 1

        began = time.monotonic()
        await asyncio.gather(*(send(began + number / rate) for number in range(num_requests)))
    return counts


def quarter(samples: list[Sample], number: int) -> float:
    """Median resident memory of one quarter of the run, from 0, in MiB."""
    size = len(samples) // NUM_QUARTERS
    return statistics.median(s.rss_mib for s in samples[number * size : (number + 1) * size])


def main() -> None:
    """Load a server, print its memory every minute, and compare the quarters of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=120)
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second")
    options = parser.parse_args()
    if options.minutes < NUM_QUARTERS:
        parser.error(f"--minutes: at least {NUM_QUARTERS}, one for each quarter")
    samples: list[Sample] = []
    counts: Counter[str] = Counter()
    rest = requests()
    with running_service() as service:
        for minute in range(options.minutes):
            num_requests = round(60 * options.rate)
            counts += asyncio.run(load(service, rest, num_requests, options.rate))
            samples.append(sample(service.pid))
            now = samples[-1]
            print(
                f"minute {minute + 1:3}: {now.rss_mib:4.0f} MiB, {now.num_threads} threads, "
                f"{now.num_descriptors} descriptors",
                flush=True,
            )
    medians = [quarter(samples, number) for number in range(NUM_QUARTERS)]
    print(f"{sum(counts.values())} requests: {dict(counts)}")
    print(f"median MiB by quarter: {', '.join(f'{m:.0f}' for m in medians)}")
    ratio = medians[3] / medians[1]
    print(f"last quarter / second quarter: {ratio:.3f} (claim: at most {NOISE})")
    sys.exit(ratio > NOISE)


if __name__ == "__main__":
    main()
