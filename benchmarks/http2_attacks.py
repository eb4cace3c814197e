"""Attackers that speak HTTP/2 frame by frame; `benchmarks.memory_attacks` measures them."""

import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle, repeat
from typing import Any, Final, cast

from tests.processes.service_process import RunningService

KEY: Final = "k" * 32
WRONG_KEY: Final = "w" * 32
NUM_ATTACKERS: Final = 8
MESSAGE_BYTES: Final = 32 * 1024 * 1024 - 1000
SEGMENT: Final = "/tipserve.v1.EncoderService/SegmentImages"
EMBED: Final = "/tipserve.v1.EncoderService/EmbedImages"
STREAM: Final = "/tipserve.v1.EncoderService/Stream"
WATCH: Final = "/grpc.health.v1.Health/Watch"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
# Flags of frames.
ACK = END_STREAM = 1
END_HEADERS: Final = 4
INITIAL_WINDOW_SIZE: Final = 4
FIRST_WINDOW: Final = 65_535
MAX_WINDOW: Final = 2**31 - 1
GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PREFACE: Final = GREETING + bytes([0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])
# Of a GOAWAY: what follows its length.
GOAWAY_HEAD: Final = bytes([GOAWAY, 0, 0, 0, 0, 0])
# A connection that takes no more data for so long is replaced by a new one.
STALL_S: Final = 1.0
NUM_FRAMES: Final = 512
Attack = Callable[[RunningService], str]
_addresses = cycle(f"127.0.1.{number + 1}" for number in range(NUM_ATTACKERS))


def attacker() -> tuple[str, int]:
    """The next address of an attacker."""
    return next(_addresses), 0


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def header(name: bytes, value: bytes) -> bytes:
    """A header without compression, for names and values below 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request_headers(method: str, key: str = KEY) -> bytes:
    """The header block of an RPC."""
    block = b"\x83\x86" + header(b":path", method.encode()) + header(b":authority", b"x")
    block += header(b"te", b"trailers") + header(b"content-type", b"application/grpc")
    return block + (header(b"x-api-key", key.encode()) if key else b"")


def prefixed(message: bytes) -> bytes:
    """A message as gRPC frames it."""
    return b"\0" + struct.pack(">I", len(message)) + message


class Connection:
    """One HTTP/2 connection, which answers what a peer must answer."""

    def __init__(self, port: int, opening: bytes = PREFACE) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), None, attacker())
        self._buffer = b""
        self.send_frames(opening)

    def send_frames(self, frames: bytes) -> None:
        """Send frames."""
        self._socket.sendall(frames)

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def close(self) -> None:
        """End it."""
        self._socket.close()

    def advance(self) -> int:
        """Send what is to be sent now; the bytes of messages among it."""
        return 0

    def receive(self) -> None:
        """Handle what has arrived.

        Raises:
            OSError: The connection is closed.
        """
        data = self._socket.recv(65_536)
        if not data:
            raise OSError("closed")
        self._buffer += data
        at = 0
        while len(self._buffer) >= at + 9:
            end = at + 9 + int.from_bytes(self._buffer[at : at + 3])
            if len(self._buffer) < end:
                break
            kind, flags = self._buffer[at + 3], self._buffer[at + 4]
            stream = int.from_bytes(self._buffer[at + 5 : at + 9]) & 0x7FFF_FFFF
            self._handle(kind, flags, stream, self._buffer[at + 9 : end])
            at = end
        self._buffer = self._buffer[at:]

    def _handle(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._settings(dict(struct.iter_unpack(">HI", payload)))
            self.send_frames(frame(SETTINGS, flags=ACK))
        elif kind == PING and not flags & ACK:
            self.send_frames(frame(PING, payload, flags=ACK))
        elif kind == WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(payload))
        elif kind == DATA:
            self._receive_data(len(payload))
        if kind == RST_STREAM or (kind in {DATA, HEADERS} and flags & END_STREAM):
            self._end(stream)

    def _settings(self, values: dict[int, int]) -> None:
        """The server's settings."""

    def _widen(self, stream: int, num_bytes: int) -> None:
        """The server takes more of a stream."""

    def _receive_data(self, num_bytes: int) -> None:
        """A part of an answer has come."""

    def _end(self, stream: int) -> None:
        """The server has ended a stream."""


class UnfinishedMessages(Connection):
    """RPCs whose messages lack their last bytes."""

    def __init__(self, port: int, method: str, num_rpcs: int) -> None:
        self._room = {0: FIRST_WINDOW}
        self._initial = FIRST_WINDOW
        self._left: dict[int, int] = {}
        self._headers, self._num_rpcs = request_headers(method), num_rpcs
        self._next, self._begin_at = 1, 0.0
        self.num_ended = 0
        super().__init__(port)

    def advance(self) -> int:
        """Begin RPCs, again after a second if they were refused; send what flow control allows."""
        now = time.monotonic()
        if now >= self._begin_at and len(self._left) < self._num_rpcs:
            self._begin_at = now + 1
            while len(self._left) < self._num_rpcs:
                self._begin()
        num_sent = 0
        for stream, left in list(self._left.items()):
            room = min(left, 16_384, self._room[0], self._room[stream])
            if room > 0:
                self._send(stream, bytes(room))
                num_sent += room
        return num_sent

    def _begin(self) -> None:
        stream, self._next = self._next, self._next + 2
        self.send_frames(frame(HEADERS, self._headers, flags=END_HEADERS, stream=stream))
        self._left[stream] = MESSAGE_BYTES
        self._room[stream] = self._initial
        self._send(stream, b"\0" + struct.pack(">I", MESSAGE_BYTES + 1))

    def _send(self, stream: int, data: bytes) -> None:
        self.send_frames(frame(DATA, data, stream=stream))
        self._room[0] -= len(data)
        self._room[stream] -= len(data)
        self._left[stream] -= len(data)

    def _settings(self, values: dict[int, int]) -> None:
        initial = values.get(INITIAL_WINDOW_SIZE, self._initial)
        for known in self._left:
            self._room[known] += initial - self._initial
        self._initial = initial

    def _widen(self, stream: int, num_bytes: int) -> None:
        self._room[stream] = self._room.get(stream, 0) + num_bytes

    def _end(self, stream: int) -> None:
        self.num_ended += self._left.pop(stream, None) is not None


class RepeatedRpcs(Connection):
    """RPCs that are asked again as soon as they end, with small messages; answers are dropped.

    Without a window, an answer larger than the first 64 kB stays unread.
    """

    def __init__(
        self,
        port: int,
        headers: bytes,
        messages: bytes,
        num_rpcs: int,
        *,
        has_window: bool = True,
    ) -> None:
        self._headers, self._messages = headers, messages
        self._num_rpcs, self._num_open, self._next = num_rpcs, 0, 1
        self._num_received = 0
        self.num_ended = 0
        windows = frame(SETTINGS, struct.pack(">HI", INITIAL_WINDOW_SIZE, MAX_WINDOW))
        windows += frame(WINDOW_UPDATE, (MAX_WINDOW - FIRST_WINDOW).to_bytes(4))
        super().__init__(port, GREETING + windows if has_window else PREFACE)

    def advance(self) -> int:
        """Begin the RPCs that are missing."""
        frames = []
        while self._num_open < self._num_rpcs:
            stream, self._next = self._next, self._next + 2
            flags = END_HEADERS | (0 if self._messages else END_STREAM)
            frames.append(frame(HEADERS, self._headers, flags=flags, stream=stream))
            if self._messages:
                frames.append(frame(DATA, self._messages, flags=END_STREAM, stream=stream))
            self._num_open += 1
        self.send_frames(b"".join(frames))
        return 0

    def _receive_data(self, num_bytes: int) -> None:
        self._num_received += num_bytes
        if self._num_received > MAX_WINDOW // 2:
            self.send_frames(frame(WINDOW_UPDATE, self._num_received.to_bytes(4)))
            self._num_received = 0

    def _end(self, stream: int) -> None:
        self._num_open -= 1
        self.num_ended += 1


def keep_going(clients: list[Any], seconds: float) -> int:
    """Let connections send and receive; how many are still open at the end."""
    until = time.monotonic() + seconds
    left = set(clients)
    poll = selectors.DefaultSelector()
    for client in clients:
        poll.register(client, selectors.EVENT_READ)
    while left and time.monotonic() < until:
        num_sent = 0
        for client in list(left):
            try:
                num_sent += client.advance()
            except OSError:
                poll.unregister(client)
                left.remove(client)
        # Wait for the server only if flow control allows nothing.
        for key, _ in poll.select(0 if num_sent else 0.05):
            with suppress(OSError):  # the next `advance` fails too
                cast("Connection", key.fileobj).receive()
    for client in clients:
        client.close()
    return len(left)


def unfinished(
    method: str, num_rpcs: int = 15, num_connections: int = 4, seconds: float = 15.0
) -> Attack:
    """Unfinished messages of 32 MB on some connections; refused ones are sent again."""

    def attack(service: RunningService) -> str:
        port = service.grpc_port
        made = [UnfinishedMessages(port, method, num_rpcs) for _ in range(num_connections)]
        num_left = keep_going(made, seconds)
        num_ended = sum(client.num_ended for client in made)
        return f"{num_connections * num_rpcs} RPCs, {num_ended} ended, {num_left} connected"

    return attack


def repeated_rpcs(
    headers: bytes,
    messages: bytes = b"",
    *,
    num_rpcs: int,
    num_connections: int,
    seconds: float = 15.0,
    has_window: bool = True,
) -> Attack:
    """The same RPC on some connections, again as soon as it ends."""

    def attack(service: RunningService) -> str:
        port = service.grpc_port
        made = [
            RepeatedRpcs(port, headers, messages, num_rpcs, has_window=has_window)
            for _ in range(num_connections)
        ]
        num_left = keep_going(made, seconds)
        num_ended = sum(client.num_ended for client in made)
        return f"{num_ended} RPCs ended, {num_ended / seconds:.0f} a second, {num_left} connected"

    return attack


def silent_rpcs(service: RunningService) -> str:
    """512 RPCs without a message on one connection, and 64 watches of health on another."""
    rpcs, others = Connection(service.grpc_port), Connection(service.grpc_port)
    embed, watch = request_headers(EMBED), request_headers(WATCH)
    for n in range(512):
        rpcs.send_frames(frame(HEADERS, embed, flags=END_HEADERS, stream=2 * n + 1))
    for n in range(64):
        stream = 2 * n + 1
        message = frame(DATA, bytes(5), flags=END_STREAM, stream=stream)
        others.send_frames(frame(HEADERS, watch, flags=END_HEADERS, stream=stream) + message)
    time.sleep(20)
    rpcs.close()
    others.close()
    return ""


def resets() -> Iterator[bytes]:
    """RPCs, each reset at once."""
    block, cancel = request_headers(EMBED, key=""), (8).to_bytes(4)
    for first in range(1, MAX_WINDOW - 2 * NUM_FRAMES, 2 * NUM_FRAMES):
        yield b"".join(
            frame(HEADERS, block, flags=END_HEADERS, stream=stream)
            + frame(RST_STREAM, cancel, stream=stream)
            for stream in range(first, first + 2 * NUM_FRAMES, 2)
        )


def continuations() -> Iterator[bytes]:
    """One head that does not end; each of its bytes is a header that was sent before.

    The core allows 16 MB of headers until its settings are acknowledged, which takes 110 MB.
    """
    known = b"\x40" + header(b"a", b"b")[1:]
    yield frame(HEADERS, request_headers(EMBED, key="") + known, stream=1)
    yield from repeat(frame(CONTINUATION, b"\xbe" * NUM_FRAMES, stream=1) * 32)


def floods() -> dict[str, Callable[[], Iterator[bytes]]]:
    """Endless frames of a connection, by name."""
    window = struct.pack(">HI", INITIAL_WINDOW_SIZE, FIRST_WINDOW)
    same = {
        "PING": frame(PING, bytes(8)),
        "SETTINGS": frame(SETTINGS, window),
        "WINDOW_UPDATE": frame(WINDOW_UPDATE, (1).to_bytes(4)),
    }
    made: dict[str, Callable[[], Iterator[bytes]]] = {
        name: lambda one=one: repeat(one * NUM_FRAMES)  # type: ignore[misc]
        for name, one in same.items()
    }
    return made | {"RST_STREAM": resets, "CONTINUATION": continuations}


class Flood:
    """One connection that sends frames without pause, and reads what comes or does not."""

    def __init__(self, port: int, frames: Iterator[bytes], *, is_reading: bool) -> None:
        self._frames, self._is_reading = frames, is_reading
        self._left = b""
        self._socket = socket.create_connection(("127.0.0.1", port), 10, attacker())
        self._socket.sendall(PREFACE)
        self._socket.setblocking(False)
        self._sent_at = time.monotonic()
        self.num_bytes = 0

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def close(self) -> None:
        """End it."""
        self._socket.close()

    def advance(self, events: int) -> bool:
        """Send and receive; False if the connection is of no more use."""
        try:
            if events & selectors.EVENT_WRITE:
                self._left = self._left or next(self._frames)
                num_sent = self._socket.send(self._left)
                self._left = self._left[num_sent:]
                self.num_bytes += num_sent
                self._sent_at = time.monotonic()
            if self._is_reading and events & selectors.EVENT_READ:
                data = self._socket.recv(2**20)
                return bool(data) and GOAWAY_HEAD not in data
        except BlockingIOError:
            pass
        except (OSError, StopIteration):
            return False
        return time.monotonic() - self._sent_at < STALL_S


def flood(
    kind: str, *, num_connections: int = 4, is_reading: bool = True, seconds: float = 15.0
) -> Attack:
    """Frames of a kind without end on some connections, which are opened again when they end."""

    def attack(service: RunningService) -> str:
        begin = floods()[kind]
        poll = selectors.DefaultSelector()
        until = time.monotonic() + seconds
        num_opened = num_bytes = 0
        # An unread connection is readable all the time.
        wanted = selectors.EVENT_WRITE | (selectors.EVENT_READ if is_reading else 0)
        while time.monotonic() < until:
            with suppress(OSError):
                while len(poll.get_map()) < num_connections:
                    made = Flood(service.grpc_port, begin(), is_reading=is_reading)
                    poll.register(made, wanted)
                    num_opened += 1
            ready = {key.fileobj: events for key, events in poll.select(0.05)}
            for key in list(poll.get_map().values()):
                client = cast("Flood", key.fileobj)
                if not client.advance(ready.get(client, 0)):
                    poll.unregister(client)
                    client.close()
                    num_bytes += client.num_bytes
        for key in list(poll.get_map().values()):
            client = cast("Flood", key.fileobj)
            client.close()
            num_bytes += client.num_bytes
        return f"{num_bytes / 1e6:.0f} MB on {num_opened} connections"

    return attack
