"""More work at once than a service lets in."""

import base64
import ssl
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import httpx

LIMIT_S: Final = 60.0
NUM_CALLERS: Final = 6


@contextmanager
def flooding(url: str, context: ssl.SSLContext, images: Sequence[bytes]) -> Iterator[list[int]]:
    """Callers who send the same pictures over and over; gives the statuses that they get."""
    stop = threading.Event()
    statuses: list[int] = []
    body = {"images": [base64.b64encode(image).decode() for image in images]}

    def ask(_: int) -> None:
        with httpx.Client(verify=context, timeout=LIMIT_S) as client:
            while not stop.is_set():
                statuses.append(client.post(url, json=body).status_code)

    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        asking = pool.map(ask, range(NUM_CALLERS))
        try:
            yield statuses
        finally:
            stop.set()
        list(asking)
