"""Latency of one request right after 128 clients have disconnected, against its latency alone.

Claim: at most 1.2 times, over REST and over gRPC: nothing is computed for disconnected clients.
Run: python -m benchmarks.hang_ups [--model bundled] [--resolution 224]
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from benchmarks.batch_latency import photo_like_jpeg
from benchmarks.load import RestConnection, rest_request
from benchmarks.service_process import RunningService, running_service
from service.grpc.generated import embed_pb2, encoder_service_pb2_grpc, image_pb2

NUM_CLIENTS = 128
LIMIT_S = 120.0

# `One` sends one request. `Crowd` sends many and returns a function that disconnects them.
One = Callable[[], Awaitable[None]]
Crowd = Callable[[], Awaitable[Callable[[], None]]]


def over_rest(service: RunningService, image: bytes, resolution: int) -> tuple[One, Crowd]:
    """Use one connection per client."""
    request = rest_request(f"/v1/images:embed?resolution={resolution}", image)

    async def one() -> None:
        connection = await RestConnection.open(service.http_port)
        status = await connection.ask(request)
        connection.close()
        if status != "200":
            raise RuntimeError(f"answered {status}")

    async def crowd() -> Callable[[], None]:
        connections = [await RestConnection.open(service.http_port) for _ in range(NUM_CLIENTS)]
        asks = [asyncio.ensure_future(c.ask(request)) for c in connections]

        def hang_up() -> None:
            for connection, ask in zip(connections, asks, strict=True):
                ask.cancel()
                connection.close()

        return hang_up

    return one, crowd


def over_grpc(stub: Any, image: bytes, resolution: int) -> tuple[One, Crowd]:
    """Use RPCs that are cancelled."""
    request = embed_pb2.EmbedImagesRequest(
        images=[image_pb2.Image(encoded=image)], resolution=resolution
    )

    async def one() -> None:
        await stub.EmbedImages(request, timeout=LIMIT_S)

    async def crowd() -> Callable[[], None]:
        calls = [stub.EmbedImages(request, timeout=LIMIT_S) for _ in range(NUM_CLIENTS)]

        def hang_up() -> None:
            for call in calls:
                call.cancel()

        return hang_up

    return one, crowd


async def seconds_of(one: One) -> float:
    """Time one request."""
    started = time.perf_counter()
    await one()
    return time.perf_counter() - started


async def measure(
    service: RunningService, one: One, crowd: Crowd, rounds: int
) -> tuple[float, float, float]:
    """Median seconds alone and after the crowd, and mean images computed per crowd."""
    await one()
    alone, after, computed = [], [], []
    for _ in range(rounds):
        alone.append(await seconds_of(one))
        before = service.metric("tipserve_batch_images_sum")
        hang_up = await crowd()
        await asyncio.sleep(statistics.median(alone) / 2)
        hang_up()
        after.append(await seconds_of(one))
        computed.append(service.metric("tipserve_batch_images_sum") - before - 1)
    return statistics.median(alone), statistics.median(after), statistics.mean(computed)


async def compare(service: RunningService, options: argparse.Namespace) -> None:
    """Measure both protocols against one service."""
    image = photo_like_jpeg(0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)
        ways = {
            "REST": over_rest(service, image, options.resolution),
            "gRPC": over_grpc(stub, image, options.resolution),
        }
        for name, (one, crowd) in ways.items():
            alone_s, after_s, computed = await measure(service, one, crowd, options.rounds)
            print(
                f"{name}: {1000 * after_s:.0f} ms after {NUM_CLIENTS} hang-ups, "
                f"{1000 * alone_s:.0f} ms alone: {after_s / alone_s:.2f} times "
                f"(claim: at most 1.20); {computed:.1f} of {NUM_CLIENTS} images had been begun"
            )


def main() -> None:
    """Measure one package at one resolution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled", help="model package: bundled, or a folder")
    parser.add_argument("--resolution", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with running_service(f"--model={options.model}") as service:
        print(f"{options.model} at {options.resolution} px, 640x480 JPEG, {options.rounds} rounds")
        asyncio.run(compare(service, options))


if __name__ == "__main__":
    main()
