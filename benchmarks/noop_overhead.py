"""Overhead of the service with a no-op model and decoder, against a plain endpoint.

Claim: with 32 requests in flight, at least 0.30 times the requests/s of a FastAPI endpoint that
only reads the body. With one in flight the medians are compared.
Run: python -m benchmarks.noop_overhead [--against COMMIT]
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commits import checked_out
from benchmarks.load import rest_clients, rest_request, send
from tests.processes.server import ROOT

BODY = os.urandom(60_000)
# Side by the name that is printed: what `noop_service` runs, its path, and its process and port.
Sides = dict[str, tuple[str, tuple[int, int]]]
PATHS = {"plain": "/plain", "tipserve": "/v1/images:embed"}
START_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Round:
    """One side of one round."""

    requests_per_s: float
    cpu_us: float
    p50_ms: float


@contextmanager
def running(kind: str, root: Path = ROOT) -> Iterator[tuple[int, int]]:
    """Start one side from the sources in a folder; returns its process id and port."""
    with tempfile.TemporaryDirectory() as folder:
        ports_file = Path(folder) / "ports.json"
        command = [sys.executable, "-m", "benchmarks.noop_service", kind, str(ports_file)]
        env = {**os.environ, "PYTHONPATH": str(root)}
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=root, env=env)
        try:
            until = time.monotonic() + START_LIMIT_S
            while not ports_file.exists():
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{kind} did not start")
                time.sleep(0.05)
            time.sleep(0.5)
            yield process.pid, json.loads(ports_file.read_text(encoding="utf-8"))["http"]
        finally:
            process.terminate()
            process.wait(30)


async def measure(side: tuple[int, int], target: str, *, in_flight: int, seconds: float) -> Round:
    """Send requests for a duration."""
    pid, port = side
    clients = await rest_clients(port, rest_request(target, BODY), in_flight)
    await send(clients, total=10 * in_flight)
    clock = ~pid << 3 | 2
    cpu_s = time.clock_gettime(clock)
    load = await send(clients, seconds=seconds)
    cpu_s = time.clock_gettime(clock) - cpu_s
    if set(load.statuses) != {"200"}:
        raise RuntimeError(f"not every request was answered: {dict(load.statuses)}")
    return Round(
        requests_per_s=load.num_answers / load.wall_s,
        cpu_us=1e6 * cpu_s / load.num_answers,
        p50_ms=1000 * load.latency_s(0.5, "200"),
    )


async def compare(sides: Sides, rounds: int, seconds: float) -> None:
    """Alternate the sides, so that other load on the machine affects both."""
    for in_flight in (32, 1):
        results: dict[str, list[Round]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, (kind, side) in sides.items():
                found = await measure(side, PATHS[kind], in_flight=in_flight, seconds=seconds)
                results[name].append(found)
        for name, measured in results.items():
            print(
                f"{in_flight:2} in flight  {name:8} "
                f"{statistics.median(r.requests_per_s for r in measured):7.0f} requests/s  "
                f"{statistics.median(r.cpu_us for r in measured):5.0f} CPU us/request  "
                f"p50 {statistics.median(r.p50_ms for r in measured):6.2f} ms"
            )
        plain = results.pop("plain")
        for name, measured in results.items():
            pairs = list(zip(measured, plain, strict=True))
            rates = statistics.median(a.requests_per_s / b.requests_per_s for a, b in pairs)
            medians = statistics.median(a.p50_ms / b.p50_ms for a, b in pairs)
            if in_flight > 1:
                text = f"requests/s {rates:.2f} times the plain endpoint's (claim: at least 0.30)"
            else:
                text = f"p50 {medians:.2f} times the plain endpoint's"
            print(f"{name}: {text}")


def main() -> None:
    """Compare the two in one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per side and round")
    parser.add_argument("--against", metavar="COMMIT", help="alternate with this commit")
    options = parser.parse_args()
    print("60 kB raw body, kept-alive connections, default settings, one embedding as JSON")
    with ExitStack() as stack:
        sides: Sides = {kind: (kind, stack.enter_context(running(kind))) for kind in PATHS}
        if options.against:
            root = stack.enter_context(checked_out(options.against))
            side = stack.enter_context(running("tipserve", root))
            sides[options.against] = "tipserve", side
        asyncio.run(compare(sides, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
