"""Tail latency of one protocol while the other is saturated, against its unloaded latency.

Claim: for both protocols, p99 is at most 3 times the unloaded p99 plus the time of one batch.
Run: python -m benchmarks.isolation [--model bundled-student] [--resolution 224]
"""

import argparse
import asyncio
from collections.abc import Sequence

from benchmarks.batch_latency import photo_like_jpeg
from benchmarks.load import Ask, Load, rest_clients, rest_request, send
from benchmarks.service_process import RunningService, running_service
from benchmarks.serving_cost import grpc_clients


async def batch_s(service: RunningService, clients: Sequence[Ask]) -> float:
    """Mean run time of a batch while both protocols are saturated."""
    name = "tipserve_stage_duration_seconds"
    sums = [
        service.metric(f"{name}_sum", stage="run"),
        service.metric(f"{name}_count", stage="run"),
    ]
    await send(clients, total=8 * len(clients))
    return (service.metric(f"{name}_sum", stage="run") - sums[0]) / (
        service.metric(f"{name}_count", stage="run") - sums[1]
    )


async def watched(asks: Sequence[Ask], others: Sequence[Ask], seconds: float) -> Load:
    """Measure one client while others send without a pause."""
    crowd = asyncio.ensure_future(send(others, seconds=seconds + 1)) if others else None
    await asyncio.sleep(0.5)
    load = await send(asks[:1], seconds=seconds)
    if crowd is not None:
        await crowd
    return load


async def compare(service: RunningService, options: argparse.Namespace) -> None:
    """Measure each protocol alone, then with the other one saturated."""
    image, in_flight = photo_like_jpeg(0), options.in_flight
    target = f"/v1/images:embed?resolution={options.resolution}"
    rest = await rest_clients(service.http_port, rest_request(target, image), in_flight)
    channels, rpc = await grpc_clients(service.grpc_port, image, options.resolution, in_flight)
    one_batch_s = await batch_s(service, [*rest, *rpc])
    for name, asks, others in (("gRPC", rpc, rest), ("REST", rest, rpc)):
        alone = (await watched(asks, [], options.seconds)).latency_s(0.99, "200")
        loaded = (await watched(asks, others, options.seconds)).latency_s(0.99, "200")
        limit = 3 * alone + one_batch_s
        print(
            f"{name}: p99 {1000 * alone:.0f} ms alone, {1000 * loaded:.0f} ms with "
            f"{in_flight} in flight over the other; one batch {1000 * one_batch_s:.0f} ms; "
            f"{loaded / limit:.2f} of the limit (claim: at most 1.00)"
        )
    for channel in channels:
        await channel.close()


def main() -> None:
    """Measure one package at one resolution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="bundled-student", help="model package: bundled, or a folder"
    )
    parser.add_argument("--resolution", type=int, default=224, help="pixels")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--in-flight", type=int, default=32)
    options = parser.parse_args()
    with running_service(f"--model={options.model}") as service:
        print(f"{options.model} at {options.resolution} px, 640x480 JPEG, one client is timed")
        asyncio.run(compare(service, options))


if __name__ == "__main__":
    main()
