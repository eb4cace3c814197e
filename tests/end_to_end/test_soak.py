"""A server that has warmed up grows no further: blocks of the same mixed requests are compared.

What callers leave who hang up is in `tests/promises/test_memory.py`.
"""

import os
import statistics
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice, pairwise
from pathlib import Path

import httpx
import pytest

from tests.processes.callers import until
from tests.processes.server import LIMIT_S, Server, memory_mib, photo, start_server

pytestmark = pytest.mark.alone
IMAGES = [photo(side, (side, side)) for side in (64, 224, 480, 640, 1600)]
TARGETS = (
    "/v1/images:embed",
    "/v1/images:segment?classes=dog,cat,sky",
    "/v1/images:segment?classes=dog,cat&mode=slide&format=polygons",
    "/v1/images:segment?classes=dog&include_scores=true&encoding=base64",
    "/v1/images:features?size=model",
    "/v1/images:classify?classes=dog,cat",
)
NUM_CALLERS, WARM_UP, NUM_BLOCKS, BLOCK = 16, 300, 8, 150
# What one request may leave on average. A leaked image has 50,000 bytes or more.
MAX_LEFT_MIB = 25_000 / 2**20


def requests() -> Iterator[tuple[str, bytes, str]]:
    """Good and bad requests, without end; every text is new."""
    for number in count():
        image = IMAGES[number % len(IMAGES)]
        yield TARGETS[number % len(TARGETS)], image, "image/jpeg"
        yield "/v1/images:embed", image[: len(image) // 2], "image/jpeg"
        text = f'{{"texts": ["a photo of number {number}"]}}'.encode()
        yield "/v1/texts:embed", text, "application/json"
        yield "/v1/texts:embed", b'{"texts": 1}', "application/json"


def held(server: Server) -> tuple[float, int, int]:
    """Resident MiB, threads and open files, once no request is left."""
    until(lambda: server.metric("tipserve_inflight") == 0, "no request is in flight")
    folder = Path(f"/proc/{server.process.pid}")
    num_threads, num_files = (len(os.listdir(folder / name)) for name in ("task", "fd"))
    return memory_mib(server.process.pid), num_threads, num_files


def test_mixed_requests_leave_nothing() -> None:
    asked, statuses = requests(), Counter[int]()

    def ask(request: tuple[str, bytes, str]) -> int:
        """On a connection of its own."""
        target, body, media = request
        headers = {"Content-Type": media}
        url = f"{server.rest}{target}"
        return httpx.post(url, content=body, headers=headers, timeout=LIMIT_S).status_code

    with (
        start_server("--model=bundled-student", "--log-level=ERROR") as server,
        ThreadPoolExecutor(NUM_CALLERS) as callers,
    ):
        states = []
        for num_requests in (WARM_UP, *[BLOCK] * NUM_BLOCKS):
            statuses.update(callers.map(ask, islice(asked, num_requests)))
            states.append(held(server))
        _, *first = states[0]
        # A connection may end a moment after its last request.
        until(
            lambda: all(now <= then for now, then in zip(held(server)[1:], first, strict=True)),
            f"threads and files end: {states}",
        )
    assert set(statuses) == {200, 422}, statuses
    # A leak adds to most blocks. An arena that grows for a larger batch adds once, and stays.
    added = [after - before for (before, *_), (after, *_) in pairwise(states)]
    assert min(statistics.mean(added), statistics.median(added)) < BLOCK * MAX_LEFT_MIB, states
