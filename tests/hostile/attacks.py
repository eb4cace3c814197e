"""Seven attacks on the memory and the time of a server, one of each kind.

Attackers come from another address than honest callers. Each attack takes the ports of REST and
gRPC, and lasts a few seconds.
"""

import http.client
import io
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count, cycle

from PIL import Image

from tests.hostile.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    http2_head,
    opened,
)

ATTACKER = ("127.0.0.2", 0)
SECONDS = 10.0
TICK_S = 0.1
EMBED = http2_head(b"/tipserve.v1.EncoderService/EmbedImages")
OPENING = PREFACE + frame(SETTINGS)
MASK = "/v1/images:segment?classes=dog"
Attack = Callable[[int, int], None]


def crowd(
    port: int,
    num: int,
    opening: bytes,
    piece: bytes = b"",
    num_read: int = 65_536,
    num_hosts: int = 1,
) -> None:
    """Connections that say something, then send and read a little now and then.

    Args:
        port: Where they connect to; again as soon as one is closed.
        num: Of connections.
        opening: What each sends at once.
        piece: What each sends every tick.
        num_read: Bytes that each reads every tick.
        num_hosts: Addresses that they come from.
    """
    hosts = cycle([ATTACKER, *((f"127.0.1.{one}", 0) for one in range(1, num_hosts))])
    connections: list[socket.socket] = []
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        with suppress(OSError):
            while len(connections) < num:
                connection = socket.create_connection(("127.0.0.1", port), 1.0, next(hosts))
                connections.append(connection)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.setblocking(False)
                connection.send(opening)
        for connection in list(connections):
            try:
                with suppress(BlockingIOError):
                    connection.send(piece)
                if not connection.recv(num_read):
                    raise ConnectionResetError
            except BlockingIOError:
                continue
            except OSError:
                connections.remove(connection)
                connection.close()
        time.sleep(TICK_S)
    for connection in connections:
        connection.close()


def together(*works: Callable[[], object]) -> None:
    """Do several things at once."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def png(side: int) -> bytes:
    """A few kilobytes that are many pixels."""
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    return stream.getvalue()


def head(path: str, media: str, length: int) -> bytes:
    """The head of a request whose answer is an array."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-npy\r\n"
        f"Content-Type: {media}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def slow_heads(http_port: int, grpc_port: int) -> None:
    """Heads that do not end, over both protocols."""
    unended = opened(1, flags=0, block=EMBED)
    together(
        lambda: crowd(http_port, 200, b"GET / HTTP/1.1\r\nX: ", b"v"),
        lambda: crowd(grpc_port, 200, OPENING + unended),
    )


def slow_bodies(http_port: int, grpc_port: int) -> None:
    """Bodies and messages of 32 MB that come at 5 kB a second."""
    size = 32 * 1024 * 1024 - 1000
    message = opened(1, block=EMBED)
    message += frame(DATA, b"\0" + size.to_bytes(4), stream=1)
    together(
        lambda: crowd(http_port, 200, head("/v1/images:embed", "image/png", size), bytes(512)),
        lambda: crowd(grpc_port, 200, OPENING + message, frame(DATA, bytes(512), stream=1)),
    )


def slow_readers(http_port: int, grpc_port: int) -> None:
    """Masks of 9 MB that are read at 5 kB a second."""
    image = png(3000)
    crowd(http_port, 200, head(MASK, "image/png", len(image)) + image, num_read=512)


def connections(http_port: int, grpc_port: int) -> None:
    """A thousand silent connections to each port."""
    together(lambda: crowd(http_port, 1000, b"GET"), lambda: crowd(grpc_port, 1000, OPENING))


def idle(http_port: int, grpc_port: int) -> None:
    """6,000 connections of 40 addresses, each silent after a request."""
    health = opened(1, END_HEADERS | END_STREAM, http2_head(b"/grpc.health.v1.Health/Check"))
    together(
        lambda: crowd(http_port, 3000, b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", num_hosts=40),
        lambda: crowd(grpc_port, 3000, OPENING + health, num_hosts=40),
    )


def frames(http_port: int, grpc_port: int) -> None:
    """CONTINUATION frames without end, and streams that are opened and reset."""
    unended = opened(1, flags=0, block=EMBED)
    more = frame(CONTINUATION, b"\xbe" * 512, stream=1) * 512
    cancel = (8).to_bytes(4)
    resets = b"".join(
        opened(number, block=EMBED) + frame(RST_STREAM, cancel, stream=number)
        for number in range(1, 2000, 2)
    )
    together(
        lambda: crowd(grpc_port, 32, OPENING + unended, more),
        lambda: crowd(grpc_port, 32, OPENING + resets),
    )


def large_inputs(http_port: int, grpc_port: int) -> None:
    """Images of 40 megapixels, a million wrong values, and forms of 20,000 parts."""
    image = png(6300)
    values = b'{"texts": [' + b",".join([b"0"] * 1_000_000) + b"]}"
    part = b'--x\r\nContent-Disposition: form-data; name="classes"\r\n\r\ndog\r\n'
    until = time.monotonic() + SECONDS

    def post(path: str, media: str, body: bytes) -> None:
        for _ in count():
            connection = http.client.HTTPConnection(
                "127.0.0.1", http_port, timeout=60, source_address=ATTACKER
            )
            with suppress(OSError, http.client.HTTPException):
                connection.request("POST", path, body, {"Content-Type": media})
                connection.getresponse().read()
            connection.close()
            if time.monotonic() > until:
                return

    together(
        *[lambda: post(MASK, "image/png", image)] * 8,
        *[lambda: post("/v1/texts:embed", "application/json", values)] * 2,
        *[lambda: post(MASK, "multipart/form-data; boundary=x", part * 20_000 + b"--x--\r\n")] * 2,
    )


ATTACKS: tuple[Attack, ...] = (
    slow_heads,
    slow_bodies,
    slow_readers,
    connections,
    idle,
    frames,
    large_inputs,
)
