"""`tipserve bench`: load a running server, and print throughput and the latency of each stage."""

import argparse
import io
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from service.commands.program import DONE, FAILED, add_server_options, new_parser, read_api_key
from service.engines.engine import EngineError

ROUTE: Final = "/v1/images:embed"
STAGE: Final = re.compile(r"([\w-]+);dur=([\d.]+)")
TIMEOUT_S: Final = 60.0
# What a client sees; the other stages are the server's, from `Server-Timing`.
WHOLE: Final = "request"


@dataclass(frozen=True, slots=True)
class Measured:
    """Statuses of requests, and milliseconds of successful ones by stage. Thread-safe."""

    statuses: Counter[str] = field(default_factory=Counter)
    times_ms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: str, whole_ms: float, server_timing: str) -> None:
        """Add an answer and its header `Server-Timing`."""
        with self._lock:
            self.statuses[status] += 1
            if status != "200":
                return
            self.times_ms[WHOLE].append(whole_ms)
            for stage, duration in STAGE.findall(server_timing):
                self.times_ms[stage].append(float(duration))

    def lines(self, seconds: float) -> Iterator[str]:
        """The report: requests per second, statuses, and a row for each stage."""
        good = self.statuses["200"]
        others = "".join(f", {n} x {name}" for name, n in self.statuses.items() if name != "200")
        yield f"{good} requests in {seconds:.1f} s: {good / seconds:.1f} per second{others}"
        yield f"{'ms':>12} {'mean':>9} {'p50':>9} {'p90':>9} {'p99':>9}"
        for stage, times in self.times_ms.items():
            numbers = [np.mean(times), *np.percentile(times, (50, 90, 99))]
            yield f"{stage:>12} " + " ".join(f"{number:9.2f}" for number in numbers)


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status.

    Raises:
        EngineError: No server is named, or the image cannot be read.
        SystemExit: The command line is wrong, or asks for help.
    """
    options = _parse(list(arguments))
    if not (options.url or "").startswith(("http://", "https://")):
        raise EngineError("--url: name a running server, such as http://localhost:8000.")
    body = _image() if options.image is None else _read(options.image)
    measured = Measured()
    with _client(options) as client:
        _ask(client, body, Measured(), time.monotonic())  # opens a connection
        began = time.monotonic()
        until = began + options.seconds
        with ThreadPoolExecutor(options.concurrency) as threads:
            for _ in range(options.concurrency):
                threads.submit(_ask, client, body, measured, until)
        seconds = time.monotonic() - began
    print("\n".join(measured.lines(seconds)))
    return DONE if measured.statuses.keys() == {"200"} else FAILED


def _ask(client: Any, body: bytes, measured: Measured, until: float) -> None:
    """Send one request after another until a time; at least one."""
    import httpx  # noqa: PLC0415 - of the extra `cli`; help needs none

    headers = {"Content-Type": "image/*"}
    while True:
        began = time.monotonic()
        try:
            answer = client.post(ROUTE, content=body, headers=headers)
            status, timing = str(answer.status_code), answer.headers.get("server-timing", "")
        except httpx.HTTPError as error:
            status, timing = type(error).__name__, ""
        measured.add(status, 1000 * (time.monotonic() - began), timing)
        if time.monotonic() >= until:
            return


@contextmanager
def _client(options: argparse.Namespace) -> Iterator[Any]:
    import httpx  # noqa: PLC0415

    key = read_api_key(options)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=options.concurrency)
    with httpx.Client(
        base_url=options.url, headers=headers, timeout=TIMEOUT_S, limits=limits
    ) as client:
        yield client


def _image() -> bytes:
    """A JPEG of 640 x 480 pixels with as much detail as a photograph."""
    small_HW3 = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small_HW3).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def _read(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except OSError as error:
        raise EngineError(f"{image} cannot be read: {error.strerror}.") from error


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = new_parser(
        "bench",
        "Send an image to a running server again and again. Prints the requests per second, and\n"
        "the milliseconds of each stage: `request` is what this client sees, the others are the\n"
        "server's own (`Server-Timing`).",
        (
            "--url http://localhost:8000",
            "--url http://localhost:8000 --image photo.jpg --concurrency 32 --seconds 30",
        ),
    )
    parser.add_argument("--image", type=Path, help="an image file (default: one of 640 x 480)")
    parser.add_argument(
        "--concurrency", type=int, default=8, help="requests in flight (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="length of the load (default: %(default)s)"
    )
    add_server_options(parser)
    options = parser.parse_args(arguments)
    if options.concurrency < 1:
        parser.error("--concurrency: at least 1 required")
    return options
