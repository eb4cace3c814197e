"""HTTP/2 frames by hand against the gRPC port: noise, floods, resets by the hundred, silence."""

import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final

from benchmarks.attacks.attack import Attack
from benchmarks.attacks.raw_socket import connected, receive, reset, send_until

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA: Final = 0
HEADERS: Final = 1
RST_STREAM: Final = 3
SETTINGS: Final = 4
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9
END_STREAM: Final = 1
END_HEADERS: Final = 4
LOOK_S: Final = 0.3

Make = Callable[[random.Random], bytes]


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header in HPACK's plainest form, neither indexed nor packed."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def head(path: bytes = b"/tipserve.v1.EncoderService/ListModels") -> bytes:
    """The headers of an RPC."""
    pairs = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"a"))
    more = ((b"te", b"trailers"), (b"content-type", b"application/grpc"))
    return b"".join(literal(name, value) for name, value in (*pairs, *more))


def opened(stream: int, flags: int = END_HEADERS, block: bytes | None = None) -> bytes:
    """A stream's headers."""
    return frame(HEADERS, head() if block is None else block, flags=flags, stream=stream)


def noise(rng: random.Random) -> bytes:
    """Frames of any kind with anything inside."""
    kinds = (rng.randrange(256) for _ in range(rng.choice((1, 20))))
    return b"".join(
        frame(
            kind,
            rng.randbytes(rng.choice((0, 5, 100))),
            flags=rng.randrange(256),
            stream=rng.choice((0, 1, 2, 3)),
        )
        for kind in kinds
    )


def broken_rule(rng: random.Random) -> bytes:
    """Frames that are well formed and forbidden."""
    return rng.choice(
        (
            frame(DATA, b"x", stream=0),
            frame(DATA, b"x", stream=7),
            opened(2),
            opened(1) + opened(1),
            frame(WINDOW_UPDATE, struct.pack(">I", 2**31 - 1)) * 3,
            frame(WINDOW_UPDATE, struct.pack(">I", 0)),
            frame(SETTINGS, struct.pack(">HI", 4, 2**32 - 1)),
            frame(SETTINGS, b"odd"),
            struct.pack(">I", 2**24 - 1)[1:] + struct.pack(">BBI", DATA, 0, 1),
            frame(CONTINUATION, b"x", stream=1),
            opened(1, block=b"\xff\xff\xff\xff\xff\xff\xff\xff"),
            opened(1, block=b"\x80"),
            opened(1, block=b""),
            opened(1, block=literal(b"Upper", b"v") + literal(b":path", b"late")),
            opened(1) + frame(DATA, b"\x01\xff\xff\xff\xff", flags=END_STREAM, stream=1),
            opened(1) + frame(DATA, b"\x00\x00\x00\x00\x05ab", flags=END_STREAM, stream=1),
            opened(1) + frame(DATA, b"\x07junk", flags=END_STREAM, stream=1),
        )
    )


def flood(rng: random.Random) -> bytes:
    """Much of what costs the sender nothing."""
    return rng.choice(
        (
            frame(PING, bytes(8)) * 5000,
            frame(SETTINGS) * 5000,
            frame(DATA, stream=1) * 5000,
            opened(1, flags=0) + frame(CONTINUATION, literal(b"x", b"v") * 50, stream=1) * 2000,
            b"".join(opened(n) for n in range(1, 1000, 2)),
            opened(1, block=head() + literal(b"x", b"v" * 100) * 5000),
            frame(GOAWAY, bytes(8)) * 100,
        )
    )


def rapid_reset(rng: random.Random) -> bytes:
    """Streams that are opened and given up at once, as in CVE-2023-44487."""
    number = rng.choice((10, 500))
    return b"".join(
        opened(n, flags=END_HEADERS | END_STREAM)
        + frame(RST_STREAM, struct.pack(">I", 8), stream=n)
        for n in range(1, 2 * number, 2)
    )


def not_http2(rng: random.Random) -> bytes:
    """What is no preface."""
    return rng.choice(
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", rng.randbytes(200), PREFACE[:10] + bytes(50))
    )


def spoken(make: Make) -> Make:
    """The frames behind a preface, as a client begins."""
    return lambda rng: PREFACE + frame(SETTINGS) + make(rng)


def frames(port: int, limit_s: float, make: Make, rng: random.Random) -> str:
    """Send them, look what comes for a moment, and leave: the server need not close."""
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        send_until(peer, make(rng), deadline)
        until = time.monotonic() + LOOK_S
        with suppress(TimeoutError):
            while receive(peer, until):
                pass
            return "closed"
        if rng.random() < 0.5:
            reset(peer)
    return "left"


def attacks(port: int, limit_s: float) -> Iterator[Attack]:
    """All of this file."""
    makes: dict[str, Make] = {
        "noise": spoken(noise),
        "broken rule": spoken(broken_rule),
        "flood": spoken(flood),
        "rapid reset": spoken(rapid_reset),
        "no http2": not_http2,
    }
    for name, make in makes.items():
        yield Attack(
            kind=f"h2 {name}",
            send=partial(frames, port, limit_s, make),
            allowed=frozenset({"left", "closed"}),
            limit_s=limit_s,
        )
