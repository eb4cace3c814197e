"""Latency of a warm model while a large model is loaded in the same process.

`python -m benchmarks.cold_load [--work FOLDER]`. One REST client sends requests to the bundled
model, first with nothing else running, then while B/14 with random weights is loaded. B/14 is
created in FOLDER first, which takes minutes.
"""

import argparse
import http.client
import threading
import time
import urllib.request
from pathlib import Path

from benchmarks.drain_rounds import photo
from benchmarks.random_model import random_b14
from benchmarks.service_process import RunningService, running_service

ALONE_S = 10.0
NATIVE = 224


class Caller:
    """One kept connection."""

    def __init__(self, service: RunningService) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", service.http_port)
        self._image = photo()

    def ask(self) -> float:
        """Send one request; returns milliseconds."""
        began = time.perf_counter()
        headers = {"Content-Type": "image/jpeg"}
        self._connection.request("POST", "/v1/images:embed?outputs=cls1", self._image, headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the service answered {answer.status}")
        return 1000 * (time.perf_counter() - began)


def describe(name: str, times_ms: list[float]) -> str:
    """Quantiles."""
    ordered = sorted(times_ms)
    p50, p99 = (ordered[int(q * (len(ordered) - 1))] for q in (0.5, 0.99))
    return f"{name}: {len(ordered)} answers, p50 {p50:.1f}, p99 {p99:.1f}, max {ordered[-1]:.1f} ms"


def compare(service: RunningService, package: str) -> None:
    """Measure without and then during the load."""
    caller = Caller(service)
    until = time.monotonic() + ALONE_S
    for _ in range(50):
        caller.ask()
    alone = []
    while time.monotonic() < until:
        alone.append(caller.ask())
    print(describe("alone", alone))
    url = f"{service.http_url}/v2/repository/models/{package}/load"
    loading = threading.Thread(target=urllib.request.urlopen, args=(url, b"{}"))
    began = time.monotonic()
    loading.start()
    during = []
    while loading.is_alive():
        during.append(caller.ask())
    seconds = time.monotonic() - began
    print(describe(f"while {package} is loaded, in {seconds:.1f} s", during))


def main() -> None:
    """Make the model and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/random"))
    folder = parser.parse_args().work
    package = random_b14(folder, NATIVE).path
    flags = ("--enable-management", f"--model-repository={folder}", "--lanes=1")
    with running_service(*flags) as service:
        compare(service, package.name)


if __name__ == "__main__":
    main()
