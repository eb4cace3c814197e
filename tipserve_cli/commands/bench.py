"""`tipserve bench`: load a running server, and print throughput and the latency of each stage."""

import io
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from tipserve_cli.engine import UserError
from tipserve_cli.files import read_image
from tipserve_cli.model_options import Positive, Server, ServerOptions, as_help
from tipserve_cli.program import DONE, FAILED

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


@as_help
def run(
    *,
    image: Path | None = None,
    concurrency: Positive = 8,
    seconds: float = 10.0,
    server: Server = ServerOptions(),
) -> int:
    """Run the command; returns the exit status.

    Args:
        image: An image file. Default: one of 640 x 480 pixels.
        concurrency: Requests in flight.
        seconds: Length of the load.
        server: That is loaded.
    """
    if not (server.url or "").startswith(("http://", "https://")):
        raise UserError("--url: name a running server, such as http://localhost:8000.")
    body = _image() if image is None else read_image(str(image))
    measured = Measured()
    with _client(server, concurrency) as client:
        _ask(client, body, Measured(), time.monotonic())  # opens a connection
        began = time.monotonic()
        until = began + seconds
        with ThreadPoolExecutor(concurrency) as threads:
            for _ in range(concurrency):
                threads.submit(_ask, client, body, measured, until)
        took_s = time.monotonic() - began
    print("\n".join(measured.lines(took_s)))
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
def _client(server: ServerOptions, concurrency: int) -> Iterator[Any]:
    import httpx  # noqa: PLC0415

    key = server.read_key()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=concurrency)
    with httpx.Client(
        base_url=server.url or "", headers=headers, timeout=TIMEOUT_S, limits=limits
    ) as client:
        yield client


def _image() -> bytes:
    """A JPEG of 640 x 480 pixels with as much detail as a photograph."""
    small_HW3 = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small_HW3).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()
