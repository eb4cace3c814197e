"""Clients that take their time: heads and bodies by the byte, silence, readers who do not read."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final

from benchmarks.attacks.attack import Attack
from benchmarks.attacks.images import whole
from benchmarks.attacks.raw_socket import (
    connected,
    is_open,
    is_readable,
    read_answer,
    receive,
    send_until,
    wait_for_end,
)

STEP_S: Final = 0.2
ENDED: Final = frozenset({"closed", "400", "408"})
READ_STEP_BYTES: Final = 64
NATIVE_PATCHES: Final = b"/v1/images:embed?outputs=patches&outputs=values"


def drip(port: int, limit_s: float, data: bytes, rng: random.Random) -> str:
    """Send a byte now and then until the server has had enough."""
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        for position in range(len(data)):
            send_until(peer, data[position : position + 1], deadline)
            if is_readable(peer):
                break
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(STEP_S * rng.random())
        return read_answer(peer, deadline).status


def slow_head(port: int, limit_s: float, rng: random.Random) -> str:
    """A head that never ends."""
    return drip(port, limit_s, b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: " + b"v" * 10**6, rng)


def slow_body(port: int, limit_s: float, rng: random.Random) -> str:
    """A body that comes at a few bytes a second."""
    head = b"POST /v1/images:embed HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
    length = b"Content-Length: 1000000\r\n\r\n" if rng.random() < 0.5 else b""
    how = length or b"Transfer-Encoding: chunked\r\n\r\n"
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        send_until(peer, head + how, deadline)
        while not is_readable(peer):
            send_until(peer, b"x" if length else b"1\r\nx\r\n", deadline)
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(STEP_S * rng.random())
        return read_answer(peer, deadline).status


def silence(port: int, limit_s: float, rng: random.Random) -> str:
    """Connect and say nothing, or half of it and then nothing."""
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        send_until(peer, rng.choice((b"", b"\r\n", b"GET / HT")), deadline)
        data = receive(peer, deadline)
        return data[9:12].decode("latin-1") or "closed"


def reads_nothing(port: int, limit_s: float, rng: random.Random) -> str:
    """Ask for more than all buffers hold, again and again, and never read."""
    deadline = time.monotonic() + limit_s
    image = whole("PNG", "RGB", 1)
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    request = head % (NATIVE_PATCHES, len(image)) + image
    with connected(port, receive_bytes=4096) as peer:
        with suppress(TimeoutError):
            send_until(peer, request * 40, min(deadline, time.monotonic() + 1.0))
        wait_for_end(peer, deadline)
    return "closed"


def reads_slowly(port: int, limit_s: float, rng: random.Random) -> str:
    """The same, with a few bytes a second taken."""
    deadline = time.monotonic() + limit_s
    image = whole("PNG", "RGB", 2)
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    with connected(port, receive_bytes=4096) as peer:
        send_until(peer, (head % (NATIVE_PATCHES, len(image)) + image) * 10, deadline)
        while True:
            peer.settimeout(max(0.01, deadline - time.monotonic()))
            # Once it is reset, what the kernel still holds would only take long to read.
            if not peer.recv(READ_STEP_BYTES) or not is_open(peer):
                return "closed"
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(STEP_S)


def attacks(port: int, limit_s: float) -> Iterator[Attack]:
    """All of this file; each lasts about as long as the server's patience."""
    sends: dict[str, Callable[[int, float, random.Random], str]] = {
        "head": slow_head,
        "body": slow_body,
        "silence": silence,
        "no reader": reads_nothing,
        "reader": reads_slowly,
    }
    for name, send in sends.items():
        yield Attack(
            kind=f"slow {name}", send=partial(send, port, limit_s), allowed=ENDED, limit_s=limit_s
        )
