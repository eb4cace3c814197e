"""The server buffers no more of a stream than its window and the requests read."""

import asyncio
import socket
import struct

from service.grpc.generated import embed_pb2, image_pb2, stream_pb2
from tests.hostile.wire import DATA, PING, PREFACE, SETTINGS, WINDOW_UPDATE, frame, opened
from tests.hostile.wire import http2_head as head
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving

LIMIT_S = 20.0
STREAM = 1
ACK = 1
INITIAL_WINDOW_SIZE = 4
# The initial window and the largest frame of HTTP/2.
FIRST_WINDOW_BYTES = 65_535
FRAME_BYTES = 16_384
# After so many round trips without more window the server is assumed to accept no more.
QUIET_TURNS = 200


class FastSender:
    """Sends one request repeatedly, as fast as windows allow, and reads no answers."""

    def __init__(self, port: int, request: bytes) -> None:
        self._peer = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
        self._request = b"\0" + struct.pack(">I", len(request)) + request
        self._initial = self._connection = FIRST_WINDOW_BYTES
        self._stream = 0
        self.num_sent = 0
        opening = opened(STREAM, block=head(b"/tipserve.v1.EncoderService/Stream"))
        self._peer.sendall(PREFACE + frame(SETTINGS) + opening)

    def send_all(self) -> int:
        """Send until no window opens any more; returns the number of bytes."""
        num_quiet = 0
        with self._peer:
            while num_quiet < QUIET_TURNS:
                num_before = self.num_sent
                while self._room > 0:
                    self._send(min(self._room, FRAME_BYTES))
                self._turn()
                num_quiet = num_quiet + 1 if self.num_sent == num_before else 0
        return self.num_sent

    @property
    def _room(self) -> int:
        return min(self._initial + self._stream - self.num_sent, self._connection)

    def _send(self, num_bytes: int) -> None:
        begin = self.num_sent % len(self._request)
        num_copies = 2 + num_bytes // len(self._request)
        data = (self._request * num_copies)[begin : begin + num_bytes]
        self._peer.sendall(frame(DATA, data, stream=STREAM))
        self.num_sent += num_bytes
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
                self._stream += int.from_bytes(payload)
            elif kind == WINDOW_UPDATE:
                self._connection += int.from_bytes(payload)

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
        sender = FastSender(held.ports["grpc"], request)
        sending = asyncio.ensure_future(asyncio.to_thread(sender.send_all))
        assert await entered()
        num_sent = await sending
    # In addition to the requests read: while the core waits for the rest of one it opens a new
    # window before it has counted the bytes that just arrived. By default it opens four MiB.
    assert num_sent <= 3 * window_bytes + (max_requests + 2) * (len(request) + 5)
    assert num_sent >= window_bytes
