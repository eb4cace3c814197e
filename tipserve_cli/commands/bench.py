"""`tipserve bench`: load a running server, and print throughput and the latency of each stage."""

import io
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image

from tipserve_cli.engine import UsageError
from tipserve_cli.files import read_image
from tipserve_cli.model_options import Positive, Server, ServerOptions, as_help
from tipserve_cli.program import DONE, FAILED

ROUTE: Final = "/v1/images:embed"
STAGE: Final = re.compile(r"([\w-]+);dur=([\d.]+)")
TIMEOUT_S: Final = 60.0
# What a client sees; the other stages are the server's, from `Server-Timing`.
WHOLE: Final = "request"


class Answer(NamedTuple):
    """The status of a request, its milliseconds, and the header `Server-Timing`."""

    status: str
    whole_ms: float
    server_timing: str


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
    import httpx2  # noqa: PLC0415 - help needs none

    if not (server.url or "").startswith(("http://", "https://")):
        raise UsageError("--url: name a running server, such as http://localhost:8000.")
    body = _image() if image is None else read_image(str(image))
    key = server.read_key()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    limits = httpx2.Limits(max_connections=concurrency)
    options: Any = {"headers": headers, "limits": limits, "timeout": TIMEOUT_S}
    with (
        httpx2.Client(base_url=str(server.url), **options) as client,
        ThreadPoolExecutor(concurrency) as threads,
    ):
        _ask(client, body, time.monotonic())  # opens a connection
        began = time.monotonic()
        asked = [threads.submit(_ask, client, body, began + seconds) for _ in range(concurrency)]
        answers = [answer for one in asked for answer in one.result()]
        took_s = time.monotonic() - began
    print("\n".join(report(answers, took_s)))
    return DONE if {answer.status for answer in answers} == {"200"} else FAILED


def report(answers: Iterable[Answer], seconds: float) -> Iterator[str]:
    """Requests per second, statuses, and a row for each stage of the successful ones."""
    statuses: Counter[str] = Counter()
    times_ms: defaultdict[str, list[float]] = defaultdict(list)
    for answer in answers:
        statuses[answer.status] += 1
        if answer.status == "200":
            times_ms[WHOLE].append(answer.whole_ms)
            for stage, duration in STAGE.findall(answer.server_timing):
                times_ms[stage].append(float(duration))
    good = statuses["200"]
    others = "".join(f", {n} x {name}" for name, n in statuses.items() if name != "200")
    yield f"{good} requests in {seconds:.1f} s: {good / seconds:.1f} per second{others}"
    yield f"{'ms':>12} {'mean':>9} {'p50':>9} {'p90':>9} {'p99':>9}"
    for stage, times in times_ms.items():
        numbers = [np.mean(times), *np.percentile(times, (50, 90, 99))]
        yield f"{stage:>12} " + " ".join(f"{number:9.2f}" for number in numbers)


def _ask(client: Any, body: bytes, until: float) -> list[Answer]:
    """Send one request after another until a time; at least one."""
    import httpx2  # noqa: PLC0415

    headers = {"Content-Type": "image/*"}
    answers: list[Answer] = []
    while not answers or time.monotonic() < until:
        began = time.monotonic()
        try:
            answer = client.post(ROUTE, content=body, headers=headers)
            status, timing = str(answer.status_code), answer.headers.get("server-timing", "")
        except httpx2.HTTPError as error:
            status, timing = type(error).__name__, ""
        answers.append(Answer(status, 1000 * (time.monotonic() - began), timing))
    return answers


def _image() -> bytes:
    """A JPEG of 640 x 480 pixels with as much detail as a photograph."""
    small_HW3 = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small_HW3).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()
