"""The server buffers no more of a stream than its window and the requests read."""

import asyncio
import socket
import struct

import pytest

from service.grpc.generated import embed_pb2, image_pb2, stream_pb2
from tests.hostile.wire import (
    DATA,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    opened,
)
from tests.hostile.wire import http2_head as head
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving

LIMIT_S = 20.0
EMBED = b"/tipserve.v1.EncoderService/EmbedImages"
STREAM = b"/tipserve.v1.EncoderService/Stream"
CHECK = b"/grpc.health.v1.Health/Check"
WATCH = b"/grpc.health.v1.Health/Watch"
ACK = 1
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
# The initial window and the largest frame of HTTP/2.
FIRST_WINDOW_BYTES = 65_535
FRAME_BYTES = 16_384
# After so many round trips without more window the server is assumed to accept no more.
QUIET_TURNS = 200


class FastSender:
    """Sends bytes on each of its streams, as fast as windows allow, and reads no answers."""

    def __init__(self, port: int, path: bytes, *, sent: bytes, num_streams: int = 1) -> None:
        self._peer = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
        self._data = sent
        self._initial = self._connection = FIRST_WINDOW_BYTES
        streams = range(1, 2 * num_streams, 2)
        self._windows = dict.fromkeys(streams, 0)
        # By stream, without those that the server has ended.
        self.num_sent = dict.fromkeys(streams, 0)
        opening = b"".join(opened(stream, block=head(path)) for stream in streams)
        self._peer.sendall(PREFACE + frame(SETTINGS) + opening)

    def send_all(self) -> int:
        """Send until no window opens any more; returns the bytes sent on streams still open."""
        num_quiet = 0
        with self._peer:
            while num_quiet < QUIET_TURNS:
                num_before = sum(self.num_sent.values())
                for stream in self.num_sent:
                    while (room := self._room(stream)) > 0:
                        self._send(stream, min(room, FRAME_BYTES))
                self._turn()
                num_quiet = num_quiet + 1 if sum(self.num_sent.values()) == num_before else 0
        return sum(self.num_sent.values())

    def _room(self, stream: int) -> int:
        num_sent = self.num_sent[stream]
        window = self._initial + self._windows[stream] - num_sent
        return min(window, self._connection, len(self._data) - num_sent)

    def _send(self, stream: int, num_bytes: int) -> None:
        begin = self.num_sent[stream]
        self._peer.sendall(frame(DATA, self._data[begin : begin + num_bytes], stream=stream))
        self.num_sent[stream] += num_bytes
        self._connection -= num_bytes

    def _turn(self) -> None:
        """Read until the server has seen all that was sent: it acknowledges in turn."""
        self._peer.sendall(frame(SETTINGS))
        while True:
            length, kind, flags, stream = struct.unpack(">3sBBI", self._read(9))
            payload = self._read(int.from_bytes(length))
            if kind == SETTINGS and flags & ACK:
                return
            if kind == SETTINGS:
                for name, value in struct.iter_unpack(">HI", payload):
                    self._initial = value if name == INITIAL_WINDOW_SIZE else self._initial
                self._peer.sendall(frame(SETTINGS, flags=ACK))
            elif kind == PING and not flags & ACK:
                self._peer.sendall(frame(PING, payload, flags=ACK))
            elif kind == WINDOW_UPDATE and stream:
                self._windows[stream] += int.from_bytes(payload)
            elif kind == WINDOW_UPDATE:
                self._connection += int.from_bytes(payload)
            elif kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
                self.num_sent.pop(stream, None)

    def _read(self, num_bytes: int) -> bytes:
        data = b""
        while len(data) < num_bytes:
            more = self._peer.recv(num_bytes - len(data))
            assert more, "the server closed"
            data += more
        return data


async def test_a_fast_sender_is_stopped_by_flow_control(
    serving: Serving, runtime: FakeRuntime, entered: Entered, encode_image: Encode
) -> None:
    images = [image_pb2.Image(encoded=encode_image(size=(200, 150)))]
    asked = stream_pb2.StreamRequest(embed_images=embed_pb2.EmbedImagesRequest(images=images))
    request = asked.SerializeToString()
    window_bytes, max_requests = 300_000, 2
    async with serving(stream_window_bytes=window_bytes, max_stream_requests=max_requests) as held:
        runtime.gate.clear()
        sent = (b"\0" + struct.pack(">I", len(request)) + request) * 1000
        sender = FastSender(held.ports["grpc"], STREAM, sent=sent)
        sending = asyncio.ensure_future(asyncio.to_thread(sender.send_all))
        assert await entered()
        num_sent = await sending
    # In addition to the requests read: while the core waits for the rest of one it opens a new
    # window before it has counted the bytes that just arrived. By default it opens four MiB.
    assert num_sent <= 3 * window_bytes + (max_requests + 2) * (len(request) + 5)
    assert num_sent >= window_bytes


@pytest.mark.parametrize(("max_rpcs", "num_streams"), [(2048, 64), (8, 32)])
async def test_one_connection_has_an_eighth_of_the_rpcs(
    serving: Serving, max_rpcs: int, num_streams: int
) -> None:
    async with serving(max_concurrent_rpcs=max_rpcs) as server:
        port = server.ports["grpc"]
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as peer:
            peer.sendall(PREFACE + frame(SETTINGS))
            with peer.makefile("rb") as answers:
                length, kind = struct.unpack(">3sB5x", answers.read(9))
                assert kind == SETTINGS
                settings = dict(struct.iter_unpack(">HI", answers.read(int.from_bytes(length))))
    assert settings[MAX_CONCURRENT_STREAMS] == num_streams


@pytest.mark.parametrize("path", [EMBED, STREAM, CHECK, WATCH])
async def test_few_unfinished_messages_are_received_at_once(serving: Serving, path: bytes) -> None:
    size, window_bytes, num_streams = 4_000_000, 65_535, 16
    limits = {"max_image_bytes": size, "max_request_bytes": size, "max_body_memory_bytes": size}
    async with serving(stream_window_bytes=window_bytes, **limits) as server:
        sent = (b"\0" + struct.pack(">I", size)).ljust(size + 4, b"\0")  # one byte is missing
        port = server.ports["grpc"]
        sender = FastSender(port, path, sent=sent, num_streams=num_streams)
        num_held = await asyncio.to_thread(sender.send_all)
        # Two places, and eight for streams.
        assert num_held <= 8 * size + num_streams * 2 * window_bytes
        assert num_held >= window_bytes
