"""System calls and voluntary context switches of one request, alone in the server.

Claim: see `BOUNDS`, which a test holds. Counts hardly depend on the machine; times do.
Run: python -m benchmarks.request_counts [--against COMMIT]
"""

import argparse
import asyncio
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.commits import checked_out
from benchmarks.load import Ask, RestConnection, photo_like_jpeg, rest_request, send
from benchmarks.serving_cost import grpc_clients
from service.machine import PROC
from tests.processes.server import ROOT, Server, start_server

RESOLUTION: Final = 112
NUM_REQUESTS: Final = 100
ROUNDS: Final = 5
START_LIMIT_S: Final = 30.0
# 1.25 times what was counted when they were set: a change that adds a hand-over is seen, and a
# busy machine is not.
BOUNDS: Final = {"REST": (7.0, 52.0), "gRPC": (21.0, 108.0)}


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one request."""

    switches: float
    system_calls: float


@contextmanager
def system_calls(pid: int, log: Path) -> Iterator[None]:
    """Count the calls of all threads of a process in the block; strace writes them to `log`."""
    command = ["strace", "-f", "-c", "-o", str(log), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stderr is not None
            attached = watch.stderr.readline()
            if "attached" not in attached:
                raise RuntimeError(f"strace does not attach: {attached}")
            yield
        finally:
            watch.send_signal(signal.SIGINT)
            watch.wait(START_LIMIT_S)


def num_system_calls(log: Path) -> int:
    """The total of strace's table."""
    (total,) = [line.split() for line in log.read_text().splitlines() if line.endswith(" total")]
    return int(total[3])


def num_switches(pid: int) -> int:
    """Voluntary context switches of all threads so far."""
    count = 0
    for status in (PROC / str(pid) / "task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                count += int(line.split()[1])
    return count


async def count(server: Server, asks: list[Ask], folder: Path) -> Counts:
    """The median counts of a request."""
    pid, log, found = server.process.pid, folder / "calls", list[Counts]()
    await send(asks, total=20)
    for _ in range(ROUNDS):
        before = num_switches(pid)
        await send(asks, total=NUM_REQUESTS)
        switches = num_switches(pid) - before
        with system_calls(pid, log):
            await send(asks, total=NUM_REQUESTS)
        found.append(Counts(switches / NUM_REQUESTS, num_system_calls(log) / NUM_REQUESTS))
    return Counts(
        statistics.median(one.switches for one in found),
        statistics.median(one.system_calls for one in found),
    )


async def count_all(server: Server, folder: Path) -> dict[str, Counts]:
    """The counts of both protocols."""
    image = photo_like_jpeg(0)
    request = rest_request(f"/v1/images:embed?resolution={RESOLUTION}", image)
    connection = await RestConnection.open(server.ports["http"])
    channels, rpc = await grpc_clients(server.ports["grpc"], image, RESOLUTION, 1)
    try:
        return {
            "REST": await count(server, [lambda number: connection.ask(request)], folder),
            "gRPC": await count(server, rpc, folder),
        }
    finally:
        connection.close()
        for channel in channels:
            await channel.close()


def measure(root: Path = ROOT) -> dict[str, Counts]:
    """The counts of a request by protocol, of a server whose sources lie in a folder."""
    flags = ("--model=bundled-student", "--runtime=onnx", "--precision=fp32")
    with (
        tempfile.TemporaryDirectory() as folder,
        start_server(*flags, "--image-cache-bytes=0", root=root) as server,
    ):
        return asyncio.run(count_all(server, Path(folder)))


def main() -> None:
    """Count here, and at another commit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="COMMIT", help="count at this commit too")
    options = parser.parse_args()
    print(f"bundled-student at {RESOLUTION} px, fp32, 640x480 JPEG in, cls1 out, 1 in flight")
    sides = {"here": measure()}
    if options.against:
        with checked_out(options.against) as root:
            sides[options.against] = measure(root)
    for side, found in sides.items():
        for protocol, one in found.items():
            print(
                f"{side:10} {protocol}  {one.switches:5.1f} voluntary context switches, "
                f"{one.system_calls:5.1f} system calls  (claim: at most {BOUNDS[protocol][0]}, "
                f"{BOUNDS[protocol][1]})"
            )


if __name__ == "__main__":
    main()
