"""Peak memory of a server under requests that are meant to fill it, and how long health waits.

Claim: no attack kills a server in 2 GiB or delays a health check by more than 10 s. Each attack has
a fresh server with API keys; those called "no key" send none.
Run: python -m benchmarks.memory_attacks [--attack TEXT]
"""

import argparse
import http.client
import io
import os
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
from PIL import Image

from benchmarks.answer_peaks import SIDE, inputs, peak_mib
from benchmarks.service_process import RunningService, running_service

KEY = "k" * 32
MESSAGE_BYTES = 32 * 1024 * 1024 - 1000
# Field 2 of a message, which is unknown to health and an image's field in ours.
LARGE_MESSAGE = b"\x12\x80\x80\xf8\x0f" + bytes(33_423_360)
HEALTH, EMBED = "/grpc.health.v1.Health/Check", "/tipserve.v1.EncoderService/EmbedImages"
STREAM = "/tipserve.v1.EncoderService/Stream"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
Attack = Callable[[RunningService], str]


def png() -> bytes:
    """5 kB that are 40 megapixels."""
    stream = io.BytesIO()
    Image.new("1", (SIDE, SIDE)).save(stream, "PNG")
    return stream.getvalue()


def post(service: RunningService, path: str, body: bytes, *, media: str, accept: str) -> str:
    """Status of one request, or the name of the error; the answer is read and dropped."""
    connection = http.client.HTTPConnection("127.0.0.1", service.http_port, timeout=120)
    headers = {"Content-Type": media, "Accept": accept, "X-Api-Key": KEY}
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        while answer.read(1024 * 1024):
            pass
        return str(answer.status)
    except OSError as error:
        return type(error).__name__
    finally:
        connection.close()


def together(work: Callable[[], str], num_threads: int, seconds: float) -> str:
    """Repeat work on threads; what came of it."""
    found: Counter[str] = Counter()
    until = time.monotonic() + seconds

    def repeat() -> None:
        while time.monotonic() < until:
            found[work()] += 1

    threads = [threading.Thread(target=repeat, daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    return str(dict(found))


def over_rest(path: str, body: bytes, media: str, accept: str = "application/json") -> Attack:
    """Four clients that repeat one request."""
    return lambda service: together(
        lambda: post(service, path, body, media=media, accept=accept), 4, 6.0
    )


def endless_trailers(service: RunningService) -> str:
    """Send trailers after a chunked body until the server closes."""
    head = b"POST /v1/images:embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.http_port)) as connection:
        connection.sendall(head + b"1\r\nx\r\n0\r\n")
        until = time.monotonic() + 12
        with suppress(OSError):
            while time.monotonic() < until:
                connection.sendall(b"a:b\r\n" * 20_000)
            return "never closed"
    return "closed"


def announced_bodies(service: RunningService) -> str:
    """Eight connections announce 32 MiB each and send nothing; others ask meanwhile."""
    head = b"POST /v1/images:embed HTTP/1.1\r\nHost: x\r\nX-Api-Key: %b\r\n" % KEY.encode()
    connections = [socket.create_connection(("127.0.0.1", service.http_port)) for _ in range(8)]
    for connection in connections:
        connection.sendall(head + b"Content-Type: image/png\r\nContent-Length: 33554432\r\n\r\n")
    image = next(body for name, _, body in inputs() if "JPEG" in name)
    path = "/v1/images:classify?classes=dog"
    found = over_rest(path, image, "image/jpeg")(service)
    for connection in connections:
        connection.close()
    return found


def slow_readers(service: RunningService) -> str:
    """Thirty clients read a mask of 80 MB at 5 kB a second."""
    image = png()
    head = (
        "POST /v1/images:segment?classes=dog HTTP/1.1\r\nHost: x\r\n"
        f"X-Api-Key: {KEY}\r\nAccept: application/x-npy\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(image)}\r\n\r\n"
    )

    def read() -> str:
        with socket.socket() as connection, suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", service.http_port))
            connection.sendall(head.encode() + image)
            connection.settimeout(25)
            until = time.monotonic() + 25
            while time.monotonic() < until and connection.recv(520):
                time.sleep(0.1)
        return "read"

    return together(read, 30, 0.1)


def calls(method: str, num_calls: int, compression: grpc.Compression | None = None) -> Attack:
    """RPCs with a message of 33 MB each, all at once over four connections."""

    def attack(service: RunningService) -> str:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        target = f"127.0.0.1:{service.grpc_port}"
        channels = [grpc.insecure_channel(target, options) for _ in range(4)]
        metadata = () if method == HEALTH else (("x-api-key", KEY),)
        rpcs: list[Any] = [channel.unary_unary(method) for channel in channels]
        options_of = {"timeout": 20, "compression": compression, "metadata": metadata}
        futures = [rpcs[n % 4].future(LARGE_MESSAGE, **options_of) for n in range(num_calls)]
        codes = Counter(future.code().name for future in futures)
        for channel in channels:
            channel.close()
        return str(dict(codes))

    return attack


class UnfinishedMessages(threading.Thread):
    """One HTTP/2 connection with RPCs whose messages lack their last bytes."""

    def __init__(self, port: int, method: str, num_rpcs: int, until: float) -> None:
        super().__init__(daemon=True)
        self._until = until
        self._connection = socket.create_connection(("127.0.0.1", port))
        self._room = {0: 65_535}
        self._initial = 65_535
        self._left: dict[int, int] = {}
        self._buffer = b""
        self._method, self._num_rpcs = method, num_rpcs

    def run(self) -> None:
        """Send what flow control allows."""
        with suppress(OSError), self._connection as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS))
            for number in range(self._num_rpcs):
                stream = 2 * number + 1
                block = b"\x83\x86" + header(b":path", self._method.encode())
                block += header(b":authority", b"x") + header(b"te", b"trailers")
                block += header(b"content-type", b"application/grpc")
                block += header(b"x-api-key", KEY.encode())
                connection.sendall(frame(HEADERS, block, flags=4, stream=stream))
                self._left[stream] = MESSAGE_BYTES
                self._room[stream] = self._initial
                self._send(stream, b"\0" + struct.pack(">I", MESSAGE_BYTES + 1))
            while time.monotonic() < self._until:
                num_sent = 0
                for stream, left in list(self._left.items()):
                    room = min(left, 16_384, self._room[0], self._room[stream])
                    if room > 0:
                        self._send(stream, bytes(room))
                        num_sent += room
                # Wait for the server only if flow control allows nothing.
                if select.select([connection], [], [], 0 if num_sent else 0.05)[0]:
                    self._receive(connection.recv(65_536))

    def _send(self, stream: int, data: bytes) -> None:
        self._connection.sendall(frame(DATA, data, stream=stream))
        self._room[0] -= len(data)
        self._room[stream] -= len(data)
        self._left[stream] -= len(data)

    def _receive(self, data: bytes) -> None:
        if not data:
            raise OSError("closed")
        self._buffer += data
        while len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3])
            if len(self._buffer) < 9 + length:
                return
            kind, flags = self._buffer[3], self._buffer[4]
            stream = int.from_bytes(self._buffer[5:9]) & 0x7FFF_FFFF
            payload, self._buffer = self._buffer[9 : 9 + length], self._buffer[9 + length :]
            self._handle(kind, flags, stream, payload)

    def _handle(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & 1:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == 4:
                    for known in self._left:
                        self._room[known] += value - self._initial
                    self._initial = value
            self._connection.sendall(frame(SETTINGS, flags=1))
        elif kind == PING and not flags & 1:
            self._connection.sendall(frame(PING, payload, flags=1))
        elif kind == WINDOW_UPDATE:
            self._room[stream] = self._room.get(stream, 0) + int.from_bytes(payload)
        elif kind == 3 or (kind == HEADERS and flags & 1):
            self._left.pop(stream, None)


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def header(name: bytes, value: bytes) -> bytes:
    """A header without compression, for names and values below 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def unfinished(method: str, num_rpcs: int = 15) -> Attack:
    """Sixty unfinished messages of 32 MB on four connections."""

    def attack(service: RunningService) -> str:
        until = time.monotonic() + 15
        clients = [UnfinishedMessages(service.grpc_port, method, num_rpcs, until) for _ in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(60)
        return f"{4 * num_rpcs} RPCs"

    return attack


def attacks() -> dict[str, Attack]:
    """Every attack by name."""
    image, gzip = png(), grpc.Compression.Gzip
    tiff = next(body for name, _, body in inputs() if "TIFF" in name)
    wrong = b'{"texts": [' + b",".join([b"0"] * 1_000_000) + b"]}"
    mask = "/v1/images:segment?classes=dog"
    return {
        "endless trailers, no key": endless_trailers,
        "complete health messages, no key": calls(HEALTH, 64),
        "unfinished health messages, no key": unfinished(HEALTH),
        "gzipped health messages, no key": calls(HEALTH, 64, gzip),
        "unfinished messages": unfinished(EMBED),
        "unfinished messages of streams": unfinished(STREAM),
        "gzipped messages": calls(EMBED, 100, gzip),
        "announced bodies": announced_bodies,
        "TIFF with a huge tile": over_rest("/v1/images:embed", tiff, "image/tiff"),
        "features as JSON lists": over_rest("/v1/images:features", image, "image/png"),
        "masks as npy": over_rest(mask, image, "image/png", "application/x-npy"),
        "slow readers": slow_readers,
        "a million wrong values": over_rest("/v1/texts:embed", wrong, "application/json"),
    }


def health_s(service: RunningService) -> float:
    """Seconds until liveness is answered; infinite if it is not."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", service.http_port, timeout=30)
    try:
        connection.request("GET", "/v2/health/live")
        is_live = connection.getresponse().status == 200
    except OSError:
        is_live = False
    finally:
        connection.close()
    return time.monotonic() - began if is_live else float("inf")


def main() -> None:
    """Run each attack against a server of its own, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", default="", help="part of an attack's name; default: all")
    options = parser.parse_args()
    os.environ["TIPSERVE_API_KEYS"] = KEY
    for name, attack in attacks().items():
        if options.attack not in name:
            continue
        with running_service() as service:
            is_over = threading.Event()
            waits_s = [health_s(service)]

            def watch(
                service: RunningService = service,
                waits_s: list[float] = waits_s,
                is_over: threading.Event = is_over,
            ) -> None:
                while not is_over.wait(0.3):
                    waits_s.append(health_s(service))

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            peak_mib(service.pid, reset=True)
            outcome = attack(service)
            is_over.set()
            watcher.join(40)
            is_dead = service.process.poll() is not None
            peak = "killed" if is_dead else f"{peak_mib(service.pid):4.0f} MiB"
            print(f"{name:36} peak {peak}; health {max(waits_s):.1f} s; {outcome}", flush=True)


if __name__ == "__main__":
    main()
