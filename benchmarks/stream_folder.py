"""A folder of small JPEGs through the Python client: one stream against unary requests.

Claim: `stream_images` over one connection reaches at least 0.95 of the images/s of unary requests
at saturation, with the best number of connections.
Run: PYTHONPATH=clients/python python -m benchmarks.stream_folder [--model noop|bundled]
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.service_process import RunningService, running_service, wait_until_ready
from tipserve_client import AsyncClient, Client

# Requests in flight and connections.
UNARY_SIDES = ((16, 1), (64, 1), (64, 4))


def make_folder(folder: Path, count: int, side: int) -> list[Path]:
    """Write JPEGs of smooth noise; a few hundred are different, the rest are copies."""
    draw = np.random.default_rng(0)
    paths = []
    encoded: list[bytes] = []
    for index in range(count):
        path = folder / f"{index:05d}.jpg"
        if index < 300:
            noise = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(path)
            encoded.append(path.read_bytes())
        else:
            path.write_bytes(encoded[index % len(encoded)])
        paths.append(path)
    return paths


@contextmanager
def serving(model: str) -> Iterator[RunningService]:
    """Run the service, with a real or a no-op model and decoder."""
    if model != "noop":
        with running_service(f"--model={model}", "--access-log-ratio=0") as service:
            yield service
        return
    with tempfile.TemporaryDirectory() as folder:
        ports_file = Path(folder) / "ports.json"
        command = [sys.executable, "-m", "benchmarks.noop_service", "tipserve", str(ports_file)]
        process = subprocess.Popen([*command, "access_log_ratio=0"], stderr=subprocess.DEVNULL)
        try:
            yield wait_until_ready(process, ports_file)
        finally:
            process.terminate()
            process.wait(30)


async def unary(url: str, paths: Sequence[Path], in_flight: int, num_clients: int) -> float:
    """Images/s of unary requests with one image each."""
    waiting = iter(paths)
    clients = [AsyncClient(url) for _ in range(num_clients)]

    async def ask(client: AsyncClient) -> None:
        for path in waiting:
            await client.embed_images(path)

    began = time.perf_counter()
    await asyncio.gather(*(ask(clients[n % num_clients]) for n in range(in_flight)))
    taken_s = time.perf_counter() - began
    for client in clients:
        await client.close()
    return len(paths) / taken_s


async def streamed_by_tasks(url: str, paths: Sequence[Path]) -> float:
    """Images/s of the asynchronous client's stream."""
    began = time.perf_counter()
    async with AsyncClient(url) as client:
        num_answers = 0
        async for item in client.stream_images(paths):
            item.result()
            num_answers += 1
    assert num_answers == len(paths)
    return num_answers / (time.perf_counter() - began)


def streamed_by_threads(url: str, paths: Sequence[Path]) -> float:
    """Images/s of the synchronous client's stream."""
    began = time.perf_counter()
    with Client(url) as client:
        num_answers = sum(item.result() is not None for item in client.stream_images(paths))
    assert num_answers == len(paths)
    return num_answers / (time.perf_counter() - began)


def measure(url: str, paths: Sequence[Path]) -> dict[str, float]:
    """Measure every side once."""
    sides = {
        f"unary, {in_flight} in flight, {connections} connections": asyncio.run(
            unary(url, paths, in_flight, connections)
        )
        for in_flight, connections in UNARY_SIDES
    }
    sides["stream, AsyncClient"] = asyncio.run(streamed_by_tasks(url, paths))
    sides["stream, Client"] = streamed_by_threads(url, paths)
    return sides


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="noop", help="noop, bundled, or a package's folder")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--side", type=int, default=96, help="side of an image in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(options.model) as service:
        paths = make_folder(Path(folder), options.count, options.side)
        size = statistics.mean(path.stat().st_size for path in paths[:300])
        print(f"{len(paths)} JPEGs of {options.side} px, {size:.0f} bytes each; {options.model}")
        url = f"grpc://127.0.0.1:{service.grpc_port}"
        measure(url, paths[:500])  # the warm-up round covers one-time costs
        rounds = [measure(url, paths) for _ in range(options.rounds)]
    rates = {name: [one[name] for one in rounds] for name in rounds[0]}
    for name, found in rates.items():
        print(f"{name:40} {statistics.median(found):8.0f} images/s  {[round(f) for f in found]}")
    for stream in ("stream, AsyncClient", "stream, Client"):
        ratios = [
            one[stream] / max(rate for name, rate in one.items() if name.startswith("unary"))
            for one in rounds
        ]
        print(f"{stream} / best unary of its round: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
