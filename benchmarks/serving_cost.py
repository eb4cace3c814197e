"""CPU time of an image through the whole service against a bare loop over the same package.

Claim: REST and gRPC at saturation cost at most 1.10 times a loop that decodes, scales and runs.
Run: python -m benchmarks.serving_cost [--model bundled-student] [--resolution 112] [--limit 1.10]
     [--against COMMIT]
"""

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from operator import sub

import grpc

from benchmarks.commits import checked_out
from benchmarks.load import Ask, photo_like_jpeg, rest_clients, rest_request, send
from model.image_codec import ImageLimits, decode_image
from model.package import ModelPackage, open_package
from model.preprocess import prepare_image
from model.runtime.load import load_runtime
from service.grpc.generated import embed_pb2, encoder_service_pb2_grpc, image_pb2
from service.machine import available_cpus
from tests.processes.server import Server, start_server

LIMITS = ImageLimits(max_bytes=1 << 24, max_pixels=1 << 26)
GRPC_CONNECTIONS = 4


class BareLoop:
    """The simplest program: decode, scale, run, with a one-thread runtime per CPU."""

    def __init__(self, package: ModelPackage, side: int, num_threads: int) -> None:
        self._side = side
        self._runtimes = [load_runtime(package) for _ in range(num_threads)]

    def run(self, image: bytes, num_images: int) -> float:
        """CPU seconds per image, for `num_images` spread over the threads."""
        share = num_images // len(self._runtimes)
        threads = [
            threading.Thread(target=self._work, args=(runtime, image, share))
            for runtime in self._runtimes
        ]
        started = time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.process_time() - started) / (share * len(threads))

    def _work(self, runtime: object, image: bytes, count: int) -> None:
        for _ in range(count):
            pixels_HW3 = decode_image(image, LIMITS)
            pixels_3HW = prepare_image(pixels_HW3, (self._side, self._side))
            runtime.encode_images(pixels_3HW[None])  # type: ignore[attr-defined]


async def grpc_clients(
    port: int, image: bytes, resolution: int, num_clients: int
) -> tuple[list[grpc.aio.Channel], list[Ask]]:
    """Return clients over a few connections, and those connections."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        for _ in range(GRPC_CONNECTIONS)
    ]
    request = embed_pb2.EmbedImagesRequest(
        images=[image_pb2.Image(encoded=image)], resolution=resolution
    )

    def client(channel: grpc.aio.Channel) -> Ask:
        stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)

        async def ask(_number: int) -> str:
            await stub.EmbedImages(request, timeout=120)
            return "200"

        return ask

    return channels, [client(channels[i % GRPC_CONNECTIONS]) for i in range(num_clients)]


async def cost_of(service: Server, asks: Sequence[Ask], num_images: int) -> float:
    """CPU seconds of the service per image.

    Raises:
        RuntimeError: Not every image was answered.
    """
    started = service.cpu_s()
    load = await send(asks, total=num_images)
    if set(load.statuses) != {"200"}:
        raise RuntimeError(f"not every image was answered: {dict(load.statuses)}")
    return (service.cpu_s() - started) / num_images


async def measure(
    services: Mapping[str, Server], loop: BareLoop, image: bytes, options: argparse.Namespace
) -> dict[str, list[float]]:
    """CPU milliseconds per image of each side, per round."""
    target = f"/v1/images:embed?resolution={options.resolution}"
    all_channels: list[grpc.aio.Channel] = []
    loop.run(image, 8)
    sides: dict[str, Callable[[], Awaitable[float]]] = {
        "bare loop": lambda: asyncio.to_thread(loop.run, image, options.images)
    }
    for name, service in services.items():
        request = rest_request(target, image)
        rest = await rest_clients(service.ports["http"], request, options.in_flight)
        channels, rpc = await grpc_clients(
            service.ports["grpc"], image, options.resolution, options.in_flight
        )
        all_channels += channels
        await send([*rest, *rpc], total=4 * options.in_flight)
        for protocol, asks in (("REST", rest), ("gRPC", rpc)):
            sides[f"{protocol} {name}"] = partial(cost_of, service, asks, options.images)
    costs: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            costs[name].append(1000 * await side())
    for channel in all_channels:
        await channel.close()
    return costs


def print_costs(costs: dict[str, list[float]], limit: float) -> None:
    """Print each side's median, and the median ratio to the loop of the same round."""
    bare = costs["bare loop"]
    for name, values in costs.items():
        ratios = [value / base for value, base in zip(values, bare, strict=True)]
        print(
            f"{name:14} {statistics.median(values):8.3f} CPU ms/image   "
            f"{statistics.median(ratios):.3f} times the loop  ({min(ratios):.3f} to "
            f"{max(ratios):.3f}; claim: at most {limit:.2f}), "
            f"{1000 * statistics.median(map(sub, values, bare)):+.0f} us"
        )


def main() -> None:
    """Measure one package at one resolution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled-student", help="bundled, or a folder")
    parser.add_argument("--resolution", type=int, help="pixels; the native size if left out")
    parser.add_argument("--images", type=int, default=400, help="images per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--limit", type=float, default=1.10, help="claimed ratio")
    parser.add_argument("--against", metavar="COMMIT", help="alternate with this commit")
    options = parser.parse_args()
    package = open_package(options.model)
    options.resolution = options.resolution or package.manifest.native_size
    num_threads = available_cpus()
    loop = BareLoop(package, options.resolution, num_threads)
    flags = (f"--model={options.model}", "--jpeg-decode=exact", "--image-cache-bytes=0")
    with ExitStack() as stack:
        services = {"here": stack.enter_context(start_server(*flags))}
        if options.against:
            root = stack.enter_context(checked_out(options.against))
            services[options.against] = stack.enter_context(start_server(*flags, root=root))
        costs = asyncio.run(measure(services, loop, photo_like_jpeg(0), options))
    print(
        f"{package.manifest.name} at {options.resolution} px, 640x480 JPEG in, cls1 out, "
        f"{options.in_flight} in flight, {options.rounds} rounds of {options.images} images, "
        f"{num_threads} CPUs, as many threads in the loop"
    )
    print_costs(costs, options.limit)


if __name__ == "__main__":
    main()
