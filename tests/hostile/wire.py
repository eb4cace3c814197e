"""Raw connections that send what no client library would: HTTP/1, HTTP/2 frames, slow clients."""

import http.client
import json
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

from tests.hostile.attack import Attack, Broken, Send, attacks
from tests.hostile.images import any_whole, whole

Make = Callable[[random.Random], bytes]
# Sends to a port within a limit in seconds, and returns a status.
SendTo = Callable[[int, random.Random, float], str]

# Right answers to a request that is not HTTP or breaks its rules; never 500.
REFUSED: Final = frozenset({"400", "404", "405", "408", "411", "413", "414", "415", "422", "431"})
ENDED: Final = REFUSED | {"200", "401", "406", "429", "501", "503", "505", "closed"}


def http1_attacks(port: int, limit_s: float) -> list[Attack]:
    """Bytes that are no HTTP, or HTTP that a proxy and a server may read differently."""
    makes = (not_http, odd_target, odd_headers, smuggled, chunked)
    sends: dict[str, Send] = {
        f"raw {make.__name__}": partial(exchange, port, make) for make in makes
    }
    sends["raw pipelined"] = partial(pipelined_answers, port)
    return [
        *attacks(sends, ENDED, limit_s),
        Attack("raw hang-up", partial(hang_up, port), frozenset({"left", "closed"}), limit_s),
        Attack("raw 100-continue", partial(leave_after_100, port), ENDED | {"100"}, limit_s),
        Attack(
            "raw tiny deadline",
            partial(exchange, port, tiny_deadline),
            frozenset({"200", "429", "504"}),
            limit_s,
        ),
    ]


def http2_attacks(port: int, limit_s: float) -> list[Attack]:
    """Frames to the gRPC port: noise, broken rules, floods, resets."""
    makes = (noise, broken_rule, flood, rapid_reset)
    sends: dict[str, Send] = {
        f"h2 {make.__name__}": partial(send_frames, port, begin(make)) for make in makes
    }
    sends["h2 not http2"] = partial(send_frames, port, not_http2)
    return attacks(sends, frozenset({"left", "closed"}), limit_s)


def slow_attacks(port: int, limit_s: float) -> list[Attack]:
    """Clients that take their time; each lasts about as long as the server waits."""
    kinds: tuple[SendTo, ...] = (slow_head, slow_body, silence, reads_nothing, reads_slowly)
    sends: dict[str, Send] = {f"slow {send.__name__}": partial(send, port) for send in kinds}
    return attacks(sends, frozenset({"closed", "400", "408"}), limit_s)


# TCP on loopback, and one HTTP answer.

CONNECT_LIMIT_S: Final = 10.0
ESTABLISHED: Final = 1
ERROR_KEYS: Final = {"message", "type", "code", "param"}
# Parts of an exception's text or a traceback.
LEAKS: Final = (b"Traceback", b"Error:", b"Exception", b".py", b"site-packages", b"object at 0x")


@contextmanager
def connected(port: int, *, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    """A connection; `receive_bytes` limits the kernel's receive buffer."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as peer:
        if receive_bytes is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        peer.settimeout(CONNECT_LIMIT_S)
        peer.connect(("127.0.0.1", port))
        yield peer


def before(peer: socket.socket, deadline: float) -> socket.socket:
    """The same connection, whose next operation must end before the deadline."""
    peer.settimeout(max(0.01, deadline - time.monotonic()))
    return peer


def read_answer(peer: socket.socket, deadline: float) -> str:
    """The status of one answer after any `100 Continue`.

    Raises:
        TimeoutError: It is not complete in time.
        ConnectionError: The connection closed before it was.
        Broken: It is no HTTP, or an error in another form.
    """
    response = http.client.HTTPResponse(before(peer, deadline))
    try:
        response.begin()
        body = response.read()
    except ConnectionError:
        raise
    except http.client.IncompleteRead as error:
        raise ConnectionResetError("closed before the end of the answer") from error
    except http.client.HTTPException as error:
        raise Broken(f"no HTTP: {error!r}") from error
    check_error(str(response.status), body)
    return str(response.status)


def check_error(status: str, body: bytes) -> None:
    """Every error has our JSON body, which reveals nothing of the program.

    Raises:
        Broken: It has another body, or reveals something.
    """
    if status[0] not in "45":
        return
    if any(leak in body for leak in LEAKS):
        raise Broken(f"{status} reveals internals: {body[:200]!r}")
    try:
        is_ours = json.loads(body)["error"].keys() == ERROR_KEYS
    except (ValueError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        raise Broken(f"{status} in another form: {body[:200]!r}")


def exchange(port: int, make: Make, rng: random.Random, limit_s: float) -> str:
    """Send this and read the status of the first answer."""
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        # The server may have answered and closed before it read everything.
        with suppress(ConnectionError):
            before(peer, deadline).sendall(make(rng))
        return read_answer(peer, deadline)


def reset(peer: socket.socket) -> None:
    """Close by RST instead of FIN."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def is_open(peer: socket.socket) -> bool:
    """Whether the kernel still considers the connection established."""
    return peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED


# HTTP/1.

HEAD_END: Final = b"\r\n\r\n"
LIVE: Final = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
MANY: Final = 10_000


def image_request(rng: random.Random, *headers: str, body: bytes | None = None) -> bytes:
    """A good POST with more headers."""
    image = any_whole(rng) if body is None else body
    lines = ["POST /v1/images:embed HTTP/1.1", "Host: localhost", "Content-Type: image/png"]
    lines += [f"Content-Length: {len(image)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + HEAD_END + image


def head(*lines: str, body: bytes = b"") -> bytes:
    """A POST of exactly these header lines."""
    first = ("POST /v1/texts:embed HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join((*first, *lines)).encode("latin-1") + HEAD_END + body


def not_http(rng: random.Random) -> bytes:
    """Noise, other protocols, and wrong request lines."""
    return rng.choice(
        (
            rng.randbytes(rng.choice((1, 100, 10_000))) + HEAD_END,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(508),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
            b"GET /\r\n\r\n",
            b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
            b"G\0T /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\r\n" * MANY + b"x\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
            b"GET / HTTP/1.1\nHost: localhost\n\n" + b"x\n\n",
        )
    )


def odd_target(rng: random.Random) -> bytes:
    """Unknown, malformed and escaped paths and queries."""
    target = rng.choice(
        (
            b"/" + b"a" * rng.choice((10_000, 60_000)),
            b"/v1/models/" + b"%00%ff%fe%2e%2e%2f" * 20,
            b"//v1//models",
            b"http://other.example/v1/models",
            b"*",
            b"/v1/models/../../etc/passwd",
            b"/v1/images%3Aembed",
            b"/v1/models?" + b"&".join(b"a%d=1" % n for n in range(5000)),
            b"/v1/models/" + rng.randbytes(20).hex().encode(),
            b"/v1/models/\xc3\xa9\xff",
            b"/docs?" + rng.randbytes(9).replace(b" ", b"") + b"#x",
            b"/openapi.json;a=b",
        )
    )
    method = rng.choice((b"GET", b"POST", b"PUT", b"DELETE", b"TRACE", b"OPTIONS", b"HEAD", b"get"))
    return method + b" " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def odd_headers(rng: random.Random) -> bytes:
    """Headers that are too many, too long, folded, nameless or repeated."""
    lines = rng.choice(
        (
            [f"x-{n}: v" for n in range(MANY)],
            ["x: " + "v" * rng.choice((10_000, 200_000))],
            ["x" * 100_000 + ": v"],
            ["x: a", " folded", "\tagain"],
            [": nameless", "spaced : v", "\x01: v", "x\x7f: \x02"],
            ["Host: b", "Host: c"],
            ["Accept: " + ",".join(["image/*;q=0.1", "*/*;q=nan", ";;;=,", "a/b;q=1e999"] * 500)],
            ["Expect: 100-continue", "Expect: 200-never"],
            ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: eA=="],
            ["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk"],
            ["Authorization: Bearer " + "k" * 9000, "X-API-Key: \xff\xfe"],
            [f"X-Request-Timeout-Ms: {rng.choice(('0', '-1', '1e3', '9' * 40, 'nan', ''))}"],
            [f"X-Request-Priority: {rng.choice(('0', '4', '1.0', '', 'high'))}"],
            [f"X-Request-Id: {'i' * 5000}", "traceparent: 00-" + "0" * 32 + "-x-01"],
            ["Range: bytes=0-,0-,0-", "If-None-Match: *", "Cookie: " + "c=1; " * 1000],
            ["Content-Type: " + "application/json;" * 1000, "Content-Encoding: gzip, br"],
            ["Connection: close, keep-alive, x" * 100],
        )
    )
    return image_request(rng, *lines)


def smuggled(rng: random.Random) -> bytes:
    """Contradicting lengths and encodings, and a second request after them."""
    hidden = b"0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
    lines = rng.choice(
        (
            ["Content-Length: 4", "Transfer-Encoding: chunked"],
            ["Transfer-Encoding: chunked", "Content-Length: 40"],
            ["Content-Length: 4", "Content-Length: 9"],
            ["Content-Length: 4, 4"],
            ["Content-Length: +4"],
            ["Content-Length: -1"],
            ["Content-Length: 0x4"],
            ["Content-Length: 4 4"],
            ["Content-Length: " + "9" * 40],
            ["Content-Length: \xb2"],
            ["Transfer-Encoding: xchunked"],
            ["Transfer-Encoding: chunked, identity"],
            ["Transfer-Encoding: identity, chunked"],
            ["Transfer-Encoding:\tchunked"],
            ["Transfer-Encoding : chunked"],
            ["Transfer-Encoding: chunked", "Transfer-Encoding: cow"],
            ["X: a\rTransfer-Encoding: chunked"],
            ["X: a\nTransfer-Encoding: chunked"],
        )
    )
    return head(*lines, body=hidden)


def chunked(rng: random.Random) -> bytes:
    """Chunked bodies with wrong, huge or endless sizes."""
    body = rng.choice(
        (
            b"zz\r\n",
            b"-1\r\nabc",
            b"f" * 16 + b"\r\nabc\r\n0\r\n\r\n",
            b"f" * 500 + b"\r\n",
            b"1;" + b"e=1;" * 20_000 + b"\r\na\r\n0\r\n\r\n",
            b"1\r\na\r\n" * 5000 + b"0\r\n\r\n",
            b"5\r\nabc\r\n0\r\n\r\n",
            b"1\na\n0\n\n",
            b"0\r\n" + b"Trailer: v\r\n" * 5000 + b"\r\n",
            b"0\r\nContent-Length: 9\r\n\r\n",
        )
    )
    # The server would wait for an incomplete body: `slow_body` is that attack.
    return head("Transfer-Encoding: chunked", "Connection: close", body=body + b"x" * 40)


def pipelined(rng: random.Random) -> bytes:
    """Several requests and then something that is none."""
    good = [LIVE, image_request(rng), b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    requests = [rng.choice(good) for _ in range(rng.choice((1, 2, 50)))]
    return b"".join(requests) + not_http(rng)


def pipelined_answers(port: int, rng: random.Random, limit_s: float) -> str:
    """Read all answers until the end; returns the status of the first one."""
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        before(peer, deadline).sendall(pipelined(rng))
        status = read_answer(peer, deadline)
        while before(peer, deadline).recv(65_536):
            pass
        return status


def hang_up(port: int, rng: random.Random, limit_s: float) -> str:
    """Leave at any moment, from within the head to within the answer, by FIN or RST."""
    data = image_request(rng)
    with connected(port) as peer:
        before(peer, time.monotonic() + limit_s).sendall(data[: rng.randrange(1, len(data) + 1)])
        time.sleep(rng.choice((0.0, 0.0, 0.001, 0.01, 0.05)))
        if rng.random() < 0.5:
            reset(peer)
    return "left"


def leave_after_100(port: int, rng: random.Random, limit_s: float) -> str:
    """Announce a body, wait until it is requested or refused, and leave."""
    announced = image_request(rng, "Expect: 100-continue", body=b"")
    announced = announced.replace(b"Content-Length: 0", b"Content-Length: 9999")
    with connected(port) as peer:
        before(peer, time.monotonic() + limit_s).sendall(announced)
        return peer.recv(65_536)[9:12].decode("latin-1") or "closed"


def tiny_deadline(rng: random.Random) -> bytes:
    """A good request whose answer must come in a few milliseconds."""
    return image_request(rng, f"X-Request-Timeout-Ms: {rng.choice((1, 2, 5, 10, 20))}")


# HTTP/2.

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


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header in HPACK's literal form, without indexing and compression."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def http2_head(path: bytes = b"/tipserve.v1.EncoderService/ListModels") -> bytes:
    """The headers of an RPC."""
    pairs = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"a"))
    more = ((b"te", b"trailers"), (b"content-type", b"application/grpc"))
    return b"".join(literal(name, value) for name, value in (*pairs, *more))


def opened(stream: int, flags: int = END_HEADERS, block: bytes | None = None) -> bytes:
    """A stream's headers."""
    return frame(HEADERS, http2_head() if block is None else block, flags=flags, stream=stream)


def noise(rng: random.Random) -> bytes:
    """Frames of random kinds and contents."""
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
    """Well-formed frames that the standard forbids."""
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
    """Many frames that cost the sender nothing."""
    return rng.choice(
        (
            frame(PING, bytes(8)) * 5000,
            frame(SETTINGS) * 5000,
            frame(DATA, stream=1) * 5000,
            opened(1, flags=0) + frame(CONTINUATION, literal(b"x", b"v") * 50, stream=1) * 2000,
            b"".join(opened(n) for n in range(1, 1000, 2)),
            opened(1, block=http2_head() + literal(b"x", b"v" * 100) * 5000),
            frame(GOAWAY, bytes(8)) * 100,
        )
    )


def rapid_reset(rng: random.Random) -> bytes:
    """Streams that are opened and reset at once, as in CVE-2023-44487."""
    number = rng.choice((10, 500))
    return b"".join(
        opened(n, flags=END_HEADERS | END_STREAM)
        + frame(RST_STREAM, struct.pack(">I", 8), stream=n)
        for n in range(1, 2 * number, 2)
    )


def not_http2(rng: random.Random) -> bytes:
    """Bytes without a preface."""
    return rng.choice(
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", rng.randbytes(200), PREFACE[:10] + bytes(50))
    )


def begin(make: Make) -> Make:
    """These frames after a client's preface."""
    return lambda rng: PREFACE + frame(SETTINGS) + make(rng)


def send_frames(port: int, make: Make, rng: random.Random, limit_s: float) -> str:
    """Send them, read for a moment, and leave: the server need not close."""
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        before(peer, deadline).sendall(make(rng))
        until = time.monotonic() + LOOK_S
        with suppress(TimeoutError):
            while before(peer, until).recv(65_536):
                pass
            return "closed"
        if rng.random() < 0.5:
            reset(peer)
    return "left"


# Slow clients.

STEP_S: Final = 0.2
READ_STEP_BYTES: Final = 64
NATIVE_PATCHES: Final = b"/v1/images:embed?outputs=patches&outputs=values"


def drip(port: int, start: bytes, piece: bytes, rng: random.Random, limit_s: float) -> str:
    """Send a piece now and then until the server answers."""
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        before(peer, deadline).sendall(start)
        while not select.select([peer], [], [], 0)[0]:
            before(peer, deadline).sendall(piece)
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(STEP_S * rng.random())
        return read_answer(peer, deadline)


def slow_head(port: int, rng: random.Random, limit_s: float) -> str:
    """A head that never ends."""
    return drip(port, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: ", b"v", rng, limit_s)


def slow_body(port: int, rng: random.Random, limit_s: float) -> str:
    """A body that comes at a few bytes per second, with its length or chunked."""
    how, piece = rng.choice(
        ((b"Content-Length: 1000000", b"x"), (b"Transfer-Encoding: chunked", b"1\r\nx\r\n"))
    )
    first = b"POST /v1/images:embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    return drip(port, first + how + HEAD_END, piece, rng, limit_s)


def silence(port: int, rng: random.Random, limit_s: float) -> str:
    """Connect and send nothing, or half of a request line."""
    with connected(port) as peer:
        before(peer, time.monotonic() + limit_s).sendall(rng.choice((b"", b"\r\n", b"GET / HT")))
        return peer.recv(65_536)[9:12].decode("latin-1") or "closed"


def patches_request() -> bytes:
    """A request with a large answer."""
    image = whole("PNG", "RGB", 1)
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    head += b"Content-Length: %d\r\n\r\n"
    return head % (NATIVE_PATCHES, len(image)) + image


def reads_nothing(port: int, rng: random.Random, limit_s: float) -> str:
    """Request more than all buffers hold and never read."""
    deadline = time.monotonic() + limit_s
    with connected(port, receive_bytes=4096) as peer:
        with suppress(TimeoutError):
            before(peer, min(deadline, time.monotonic() + 1.0)).sendall(patches_request() * 40)
        while is_open(peer):
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.05)
    return "closed"


def reads_slowly(port: int, rng: random.Random, limit_s: float) -> str:
    """Request as much and read a few bytes per second."""
    deadline = time.monotonic() + limit_s
    with connected(port, receive_bytes=4096) as peer:
        before(peer, deadline).sendall(patches_request() * 10)
        # After a reset, reading what the kernel still holds would only take long.
        while before(peer, deadline).recv(READ_STEP_BYTES) and is_open(peer):
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(STEP_S)
        return "closed"
