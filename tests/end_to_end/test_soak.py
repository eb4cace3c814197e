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
from typing import NamedTuple

import httpx
import pytest

from tests.processes.callers import until
from tests.processes.server import LIMIT_S, Server, photo, start_server

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
MAX_LEFT_BYTES = 25_000


class State(NamedTuple):
    """What a server without requests holds."""

    rss_bytes: int
    num_threads: int
    num_descriptors: int


def requests() -> Iterator[tuple[str, bytes, str]]:
    """Good and bad requests, without end; every text is new."""
    for number in count():
        image = IMAGES[number % len(IMAGES)]
        yield TARGETS[number % len(TARGETS)], image, "image/jpeg"
        yield "/v1/images:embed", image[: len(image) // 2], "image/jpeg"
        text = f'{{"texts": ["a photo of number {number}"]}}'.encode()
        yield "/v1/texts:embed", text, "application/json"
        yield "/v1/texts:embed", b'{"texts": 1}', "application/json"


def settled(server: Server) -> State:
    """What is held once no request is left."""
    until(lambda: server.metric("tipserve_inflight") == 0, "no request is in flight")
    folder = Path(f"/proc/{server.process.pid}")
    status = (folder / "status").read_text(encoding="ascii")
    return State(
        rss_bytes=int(status.partition("VmRSS:")[2].split()[0]) * 1024,
        num_threads=int(status.partition("Threads:")[2].split()[0]),
        num_descriptors=len(os.listdir(folder / "fd")),
    )


def holds_no_more(last: State, first: State) -> bool:
    """Whether neither threads nor open files were added."""
    return last.num_threads <= first.num_threads and last.num_descriptors <= first.num_descriptors


def test_mixed_requests_leave_nothing() -> None:
    asked, states = requests(), []
    statuses: Counter[int] = Counter()

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
        for num_requests in (WARM_UP, *[BLOCK] * NUM_BLOCKS):
            statuses.update(callers.map(ask, islice(asked, num_requests)))
            states.append(settled(server))
        # A connection may end a moment after its last request.
        until(lambda: holds_no_more(settled(server), states[0]), f"threads and files end: {states}")
    assert set(statuses) == {200, 422}, statuses
    # A leak adds to most blocks. An arena that grows for a larger batch adds once, and stays.
    added = [after.rss_bytes - before.rss_bytes for before, after in pairwise(states)]
    assert min(statistics.mean(added), statistics.median(added)) < BLOCK * MAX_LEFT_BYTES, states
