"""Raw connections that send what no client library would: HTTP/1, HTTP/2 and gRPC frames."""

import http.client
import json
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from io import BytesIO
from typing import Any, Final, Self

import grpc
import numpy as np
from PIL import Image

from service.grpc.generated import embed_pb2, encoder_service_pb2, image_pb2, segment_pb2

# Images in six formats, whole at first and then damaged: cut, flipped, spliced, repeated.

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
# Pillow's modes that the format can hold.
MODES: Final = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "TIFF": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "F", "CMYK", "YCbCr", "LAB"),
    "BMP": ("RGB", "L", "P", "1"),
}
SAVE_OPTIONS: Final[dict[str, tuple[dict[str, object], ...]]] = {
    "JPEG": ({}, {"progressive": True}, {"quality": 100, "subsampling": 0}),
    "TIFF": tuple({"compression": c} for c in ("raw", "tiff_lzw", "tiff_deflate", "packbits")),
    "WEBP": ({}, {"lossless": True}),
}
NUM_SEEDS: Final = 4
Damage = Callable[[bytes, random.Random], bytes]


@cache
def whole(file_format: str, mode: str, seed: int, option: int = 0) -> bytes:
    """A small encoded image of smooth noise, the same for the same arguments."""
    draw = np.random.default_rng(seed)
    height, width = (int(n) for n in draw.integers(24, 120, 2))
    noise = Image.fromarray(draw.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    image = noise.resize((width, height), Image.Resampling.BICUBIC)
    if mode == "I;16":
        wide = np.asarray(image.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(wide)
    else:
        image = image.convert(mode)
    stream = BytesIO()
    options = SAVE_OPTIONS.get(file_format, ({},))
    image.save(stream, file_format, **options[option % len(options)])
    return stream.getvalue()


def any_whole(rng: random.Random) -> bytes:
    """One of the whole images."""
    file_format = rng.choice(FORMATS)
    mode = rng.choice(MODES[file_format])
    return whole(file_format, mode, rng.randrange(NUM_SEEDS), rng.randrange(4))


def cut(data: bytes, rng: random.Random) -> bytes:
    """The beginning alone."""
    return data[: rng.randrange(len(data) + 1)]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """A few bits turned round, most often near the beginning, where the structure is."""
    damaged = bytearray(data or b"\0")
    reach = len(damaged) if rng.random() < 0.5 else min(len(damaged), 200)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        damaged[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def splice(data: bytes, rng: random.Random) -> bytes:
    """Half of one image and half of another."""
    other = any_whole(rng)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """A piece several times over."""
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.randrange(1, 400)]
    return data[:start] + piece * rng.randrange(2, 50) + data[start:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """A piece of noise, of zeros or of ones."""
    length = rng.choice((1, 2, 4, 4, 16, 100))
    start = rng.randrange(max(1, len(data) - length))
    filling = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length))
    return data[:start] + filling + data[start + length :]


def append(data: bytes, rng: random.Random) -> bytes:
    """Noise behind the end."""
    return data + rng.randbytes(rng.randrange(1, 5000))


DAMAGES: Final[dict[str, Damage]] = {
    "cut": cut,
    "bit flips": flip_bits,
    "spliced": splice,
    "repeated": repeat,
    "overwritten": overwrite,
    "appended": append,
}


# What an attack is, and the books that are kept of many: answers, hangs, defects.

MAX_PAUSE_S: Final = 0.02
# Of one defect; the rest are only counted.
MAX_EXAMPLES: Final = 3
Send = Callable[[random.Random], str]


class Broken(Exception):
    """The answer is one that no request may get, whatever it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One way to be a nuisance.

    Attributes:
        kind: Its name in the report.
        send: Does it once and returns the status of the answer. A `TimeoutError` is a hang, a
            `ConnectionError` a connection that the server closed.
        allowed: The statuses that are right answers to it; `closed` is one of them or not.
        limit_s: Seconds after which an answer, or the end of the connection, counts as a hang.
    """

    kind: str
    send: Send
    allowed: frozenset[str]
    limit_s: float


@dataclass(slots=True)
class Books:
    """Counts of what came of the attacks; every method may be called from any thread."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    slowest_s: dict[str, float] = field(default_factory=dict)
    hangs: Counter[str] = field(default_factory=Counter)
    defects: dict[str, list[str]] = field(default_factory=dict)
    num_defects: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_attacks(self) -> int:
        """All attacks that ended."""
        with self._lock:
            return sum(counts.total() for counts in self.statuses.values())

    def note(self, kind: str, status: str, seconds: float, *, number: int = 1) -> None:
        """Count one answer, or so many, of which the slowest took so long."""
        with self._lock:
            self.statuses.setdefault(kind, Counter())[status] += number
            self.slowest_s[kind] = max(self.slowest_s.get(kind, 0.0), seconds)

    def note_defect(self, name: str, example: str) -> None:
        """Count an answer that should not be, with what is needed to ask again."""
        with self._lock:
            self.num_defects[name] += 1
            examples = self.defects.setdefault(name, [])
            if len(examples) < MAX_EXAMPLES:
                examples.append(example)

    def make(self, attack: Attack, seed: int) -> None:
        """Do one attack, and judge what came of it."""
        begun = time.monotonic()
        try:
            status = attack.send(random.Random(seed))
        except TimeoutError:
            status = "hang"
        except ConnectionError:
            status = "closed"
        except Broken as error:
            status = "broken"
            self.note_defect(
                f"{attack.kind}: {error}", f"seed {seed}, at {datetime.now(UTC):%H:%M:%S}"
            )
        seconds = time.monotonic() - begun
        self.note(attack.kind, status, seconds)
        if status == "hang" or seconds > attack.limit_s:
            with self._lock:
                self.hangs[attack.kind] += 1
            self.note_defect(f"{attack.kind}: hang", f"seed {seed}, {seconds:.1f} s")
        elif status not in attack.allowed and status != "broken":
            self.note_defect(f"{attack.kind}: {status}", f"seed {seed}")


def attack_until(stop: threading.Event, attacks: Sequence[Attack], books: Books, seed: int) -> None:
    """Make these attacks in random order until told to stop."""
    rng = random.Random(seed)
    while not stop.is_set():
        books.make(rng.choice(attacks), rng.getrandbits(48))
        stop.wait(rng.uniform(0.0, MAX_PAUSE_S))


# Bare TCP to loopback: writes any bytes, reads one HTTP answer, sees whether the peer is gone.

HEAD_END: Final = b"\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 "
CONNECT_LIMIT_S: Final = 10.0
ESTABLISHED: Final = 1
ERROR_KEYS: Final = {"message", "type", "code", "param"}
# What an exception's text or a traceback would show.
LEAKS: Final = (b"Traceback", b"Error:", b"Exception", b".py", b"site-packages", b"object at 0x")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status, headers by lower-case name, and the whole body."""

    status: str
    headers: dict[str, str]
    body: bytes


@contextmanager
def connected(port: int, *, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    """A connection; `receive_bytes` keeps the kernel from taking more than it must."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as peer:
        if receive_bytes is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        peer.settimeout(CONNECT_LIMIT_S)
        peer.connect(("127.0.0.1", port))
        yield peer


def send_until(peer: socket.socket, data: bytes, deadline: float) -> None:
    """Send all of it.

    Raises:
        TimeoutError: The peer does not take it in time.
        ConnectionError: The peer closed.
    """
    peer.settimeout(max(0.01, deadline - time.monotonic()))
    peer.sendall(data)


def receive(peer: socket.socket, deadline: float) -> bytes:
    """What comes next; nothing at the end.

    Raises:
        TimeoutError: Nothing comes in time.
        ConnectionError: The peer reset the connection.
    """
    peer.settimeout(max(0.01, deadline - time.monotonic()))
    return peer.recv(65_536)


def read_answer(peer: socket.socket, deadline: float) -> HttpAnswer:
    """One answer, whose errors must be in the one body; `100 Continue` is none.

    Raises:
        TimeoutError: It is not complete in time.
        ConnectionError: The connection closed before it was.
        Broken: An error in another form, or one that says too much.
    """
    rest = b""
    head = CONTINUE
    while head.startswith(CONTINUE):
        data = bytearray(rest)
        while HEAD_END not in data:
            data += _more(peer, deadline)
        head, _, rest = bytes(data).partition(HEAD_END)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    status = first.split(" ")[1]
    body = bytearray(rest)
    length = int(headers.get("content-length", 0))
    while len(body) < length:
        body += _more(peer, deadline)
    answer = HttpAnswer(status, headers, bytes(body[:length]))
    check_error(answer)
    return answer


def check_error(answer: HttpAnswer) -> None:
    """Every error has the one body, and says nothing of the program.

    Raises:
        Broken: It has not, or it does.
    """
    if answer.status[0] not in "45":
        return
    if any(leak in answer.body for leak in LEAKS):
        raise Broken(f"{answer.status} tells of the program: {answer.body[:200]!r}")
    try:
        is_ours = json.loads(answer.body)["error"].keys() == ERROR_KEYS
    except (ValueError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        raise Broken(f"{answer.status} in another form: {answer.body[:200]!r}")


def exchange(port: int, data: bytes, limit_s: float) -> str:
    """Send this, and read the status of the first answer.

    Raises:
        TimeoutError: No answer, nor an end, in time.
        ConnectionError: The server closed instead of answering.
        Broken: As `read_answer`.
    """
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        try:
            send_until(peer, data, deadline)
        except ConnectionError:
            # It may have answered before it had read everything.
            return read_answer(peer, deadline).status
        return read_answer(peer, deadline).status


def reset(peer: socket.socket) -> None:
    """Close by RST instead of FIN."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def wait_for_end(peer: socket.socket, deadline: float) -> None:
    """Wait, without reading, until the peer has closed.

    Raises:
        TimeoutError: It has not.
    """
    while is_open(peer):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def is_open(peer: socket.socket) -> bool:
    """Whether the peer has not closed, as far as the kernel knows."""
    return peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED


def is_readable(peer: socket.socket) -> bool:
    """Whether something, or the end, can be read without waiting."""
    return bool(select.select([peer], [], [], 0)[0])


def _more(peer: socket.socket, deadline: float) -> bytes:
    data = receive(peer, deadline)
    if not data:
        raise ConnectionResetError("closed before the end of the answer")
    return data


# A kept-alive HTTP client over the standard library, with a connection for each thread.


class RestClient:
    """Asks one server; leaving its context closes the connections of all threads."""

    def __init__(self, port: int, limit_s: float) -> None:
        self._port = port
        self._limit_s = limit_s
        self._connections: dict[int, http.client.HTTPConnection] = {}

    def __enter__(self) -> Self:
        """Nothing is opened before it is needed."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close everything; no thread may still ask."""
        for connection in self._connections.values():
            connection.close()

    def ask(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> HttpAnswer:
        """Send one request and read its whole answer.

        Raises:
            TimeoutError: It did not come in time.
            ConnectionError: The server closed the connection instead, twice.
            Broken: An error in another form than ours.
        """
        try:
            return self._ask(method, target, body, headers)
        except ConnectionError:
            # The server may close a kept connection just when it is used again.
            return self._ask(method, target, body, headers)

    def _ask(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> HttpAnswer:
        thread = threading.get_ident()
        if thread not in self._connections:
            self._connections[thread] = http.client.HTTPConnection(
                "127.0.0.1", self._port, timeout=self._limit_s
            )
        connection = self._connections[thread]
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            content = response.read()
        except BaseException as error:
            # The next request opens it again.
            connection.close()
            if isinstance(error, http.client.HTTPException):
                raise ConnectionResetError("closed before the end of the answer") from error
            raise
        told = {name.lower(): value for name, value in response.getheaders()}
        answer = HttpAnswer(str(response.status), told, content)
        check_error(answer)
        return answer


# Bytes over plain TCP that are no HTTP, or HTTP that a proxy and a server may read differently.

# An answer, whatever it says, or the end of the connection; never 500.
REFUSED: Final = frozenset({"400", "404", "405", "408", "411", "413", "414", "415", "422", "431"})
ENDED: Final = REFUSED | {"200", "401", "406", "429", "501", "503", "505", "closed"}
LIVE: Final = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
MANY: Final = 10_000
MIB: Final = 1024 * 1024
Make = Callable[[random.Random], bytes]
Target = Callable[[int], "list[Attack]"]


def image_request(rng: random.Random, *headers: str, body: bytes | None = None) -> bytes:
    """A good POST as it goes over the wire, with more headers."""
    image = any_whole(rng) if body is None else body
    lines = ["POST /v1/images:embed HTTP/1.1", "Host: a", "Content-Type: image/png"]
    lines += [f"Content-Length: {len(image)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + HEAD_END + image


def head(*lines: str, body: bytes = b"") -> bytes:
    """A POST of exactly these header lines."""
    first = ("POST /v1/texts:embed HTTP/1.1", "Host: a", "Content-Type: application/json")
    return "\r\n".join((*first, *lines)).encode("latin-1") + HEAD_END + body


def not_http(rng: random.Random) -> bytes:
    """Noise, other protocols, and requests of lines that are wrong."""
    return rng.choice(
        (
            rng.randbytes(rng.choice((1, 100, 10_000))) + HEAD_END,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(508),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
            b"GET /\r\n\r\n",
            b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
            b"G\0T /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\r\n" * MANY + b"x\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
            b"GET / HTTP/1.1\nHost: a\n\n" + b"x\n\n",
        )
    )


def odd_target(rng: random.Random) -> bytes:
    """Paths and queries that no route has, in every disguise."""
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
    return method + b" " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def odd_headers(rng: random.Random) -> bytes:
    """Far too many, far too long, folded, nameless, repeated."""
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
    """Lengths and encodings that contradict each other; a second request hides behind them."""
    hidden = b"0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
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
    """Chunked bodies of sizes that are wrong, huge, endless or hidden in extensions."""
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
    # What is incomplete would be waited for: that is a slow body, and another attack.
    return head("Transfer-Encoding: chunked", "Connection: close", body=body + b"x" * 40)


def pipelined(rng: random.Random) -> bytes:
    """Requests one behind the other, and then something that is none."""
    good = [LIVE, image_request(rng), b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"]
    requests = [rng.choice(good) for _ in range(rng.choice((1, 2, 50)))]
    return b"".join(requests) + not_http(rng)


def answered(port: int, make: Make, limit_s: float, rng: random.Random) -> str:
    """Send it and close the sending half, so that the server does not wait for more."""
    return exchange(port, make(rng), limit_s)


def pipelined_answers(port: int, limit_s: float, rng: random.Random) -> str:
    """Read all that comes until the end; the status of the first answer."""
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        send_until(peer, pipelined(rng), deadline)
        status = read_answer(peer, deadline).status
        while receive(peer, deadline):
            pass
        return status


def hang_up(port: int, limit_s: float, rng: random.Random) -> str:
    """Leave at any moment, from within the head to within the answer, by FIN or RST."""
    data = image_request(rng)
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        send_until(peer, data[: rng.randrange(1, len(data) + 1)], deadline)
        time.sleep(rng.choice((0.0, 0.0, 0.001, 0.01, 0.05)))
        if rng.random() < 0.5:
            reset(peer)
    return "left"


def leave_after_100_continue(port: int, limit_s: float, rng: random.Random) -> str:
    """Announce a body, wait until it is asked for or refused, and go."""
    deadline = time.monotonic() + limit_s
    announced = image_request(rng, "Expect: 100-continue", body=b"")
    announced = announced.replace(b"Content-Length: 0", b"Content-Length: 9999")
    with connected(port) as peer:
        send_until(peer, announced, deadline)
        return receive(peer, deadline)[9:12].decode("latin-1") or "closed"


def tiny_deadline(port: int, limit_s: float, rng: random.Random) -> str:
    """A good request whose answer must come in a few milliseconds."""
    header = f"X-Request-Timeout-Ms: {rng.choice((1, 2, 5, 10, 20))}"
    return exchange(port, image_request(rng, header), limit_s)


def http1_attacks(port: int, limit_s: float) -> Iterator[Attack]:
    """All of this file; none takes long but by the server's fault."""
    makes: dict[str, Make] = {
        "no http": not_http,
        "odd target": odd_target,
        "odd headers": odd_headers,
        "smuggled": smuggled,
        "chunked": chunked,
    }
    for name, make in makes.items():
        send = partial(answered, port, make, limit_s)
        yield Attack(kind=f"raw {name}", send=send, allowed=ENDED, limit_s=limit_s)
    others: dict[str, tuple[Callable[[int, float, random.Random], str], frozenset[str]]] = {
        "raw pipelined": (pipelined_answers, ENDED),
        "raw hang-up": (hang_up, frozenset({"left", "closed"})),
        "raw 100-continue": (leave_after_100_continue, ENDED | {"100"}),
        "raw tiny deadline": (tiny_deadline, frozenset({"200", "429", "504"})),
    }
    for kind, (send_raw, allowed) in others.items():
        yield Attack(
            kind=kind, send=partial(send_raw, port, limit_s), allowed=allowed, limit_s=limit_s
        )


# HTTP/2 frames by hand against the gRPC port: noise, floods, resets by the hundred, silence.

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
    """A header in HPACK's plainest form, neither indexed nor packed."""
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
            opened(1, block=http2_head() + literal(b"x", b"v" * 100) * 5000),
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


def http2_attacks(port: int, limit_s: float) -> Iterator[Attack]:
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


# Bytes of any kind to every RPC through a bare stub: noise, damage, unknown names, metadata.

SERVICE: Final = "/tipserve.v1.EncoderService/"
METHODS: Final = ("EmbedImages", "EmbedTexts", "SegmentImages", "GetModel", "ListModels")
OPEN_METHODS: Final = (
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
RPC_LEAKS: Final = ("Traceback", "Exception", "Unexpected", "Error:", ".py", "<class")
RPC_REFUSED: Final = frozenset({"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"})
ANSWERED: Final = RPC_REFUSED | {"OK", "NOT_FOUND"}
UNASKED: Final = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE})
TOO_LARGE: Final = 33 * 1024 * 1024


def call(
    channel: grpc.Channel, method: str, message: bytes, limit_s: float, **options: Any
) -> tuple[str, bytes]:
    """One unary RPC of ours, in bytes; the code's name and the answer.

    Raises:
        grpc.RpcError: It failed.
    """
    path = method if method.startswith("/") else SERVICE + method
    stub: Any = channel.unary_unary(path)
    return "OK", stub(message, timeout=limit_s, **options)


def checked_code(send: Send, rng: random.Random) -> str:
    """The code of an RPC that may fail.

    Raises:
        TimeoutError: It met our deadline, which is far beyond its own.
        Broken: Its details reveal internals, or its status is unexpected.
    """
    try:
        return send(rng)
    except grpc.RpcError as error:
        state: Any = error
        details = state.details() or ""
        if state.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise TimeoutError from error
        if state.code() in UNASKED:
            how = state.debug_error_string()
            raise Broken(f"{state.code().name}, which is unexpected: {how[:300]}") from None
        if any(leak in details for leak in RPC_LEAKS):
            raise Broken(f"{state.code().name} tells of the program: {details[:200]}") from None
        return str(state.code().name)


def message_attacks(channel: grpc.Channel, limit_s: float) -> list[Attack]:
    """Messages that are none, or nearly one."""

    def noise(method: str, rng: random.Random) -> str:
        return call(channel, method, rng.randbytes(rng.choice((1, 10, 1000, 100_000))), limit_s)[0]

    def damaged(rng: random.Random) -> str:
        method, message = whole_message(rng)
        return call(channel, method, rng.choice(list(DAMAGES.values()))(message, rng), limit_s)[0]

    def mixed_up(rng: random.Random) -> str:
        return call(channel, rng.choice(METHODS), whole_message(rng)[1], limit_s)[0]

    def too_large(rng: random.Random) -> str:
        return call(channel, rng.choice(METHODS), bytes(TOO_LARGE), limit_s)[0]

    kinds: dict[str, tuple[Send, frozenset[str]]] = {
        f"grpc noise to {method}": (partial(noise, method), ANSWERED) for method in METHODS
    }
    kinds["grpc damaged message"] = damaged, ANSWERED
    kinds["grpc another's message"] = mixed_up, ANSWERED
    kinds["grpc message too large"] = too_large, frozenset({"RESOURCE_EXHAUSTED"})
    return [
        Attack(kind=kind, send=partial(checked_code, send), allowed=allowed, limit_s=limit_s)
        for kind, (send, allowed) in kinds.items()
    ]


def call_attacks(channel: grpc.Channel, limit_s: float) -> list[Attack]:
    """Names, metadata and numbers of messages that the contract does not have."""

    def unknown(rng: random.Random) -> str:
        name = rng.choice(("Nothing", "embedImages", "\u00e9", "a" * 3000, "EmbedImages/", ".."))
        service = rng.choice((SERVICE, "/", "//", "/tipserve.v2.EncoderService/", "/a/b/c/"))
        return call(channel, service + name, b"", limit_s)[0]

    def metadata(rng: random.Random) -> str:
        number = rng.choice((10, 60))
        pairs: list[Any] = [(f"x-{n}", "v" * rng.choice((1, 100))) for n in range(number)]
        pairs += [("x-request-priority", rng.choice(("1", "9", "-1", "one", " ")))]
        pairs += [("x-request-id", "i" * rng.choice((1, 500))), ("traceparent", "00-zz-0-1")]
        pairs += [("x-bin", rng.randbytes(100))]
        return call(channel, "ListModels", b"", limit_s, metadata=pairs)[0]

    def huge_metadata(rng: random.Random) -> str:
        pairs = [("x-huge", "v" * rng.choice((10_000, 20_000, 100_000, 1_000_000)))]
        return call(channel, "ListModels", b"", limit_s, metadata=pairs)[0]

    def messages(rng: random.Random) -> str:
        number = rng.choice((0, 2, 100))
        stub: Any = channel.stream_unary(SERVICE + rng.choice(METHODS))
        stub(iter([b""] * number), timeout=limit_s)
        return "OK"

    def open_service(rng: random.Random) -> str:
        stub: Any = channel.stream_stream(rng.choice(OPEN_METHODS))
        noise = [rng.randbytes(rng.choice((1, 10, 1000))) for _ in range(3)]
        for _ in stub(iter(noise), timeout=limit_s):
            break
        return "OK"

    kinds: dict[str, tuple[Send, frozenset[str]]] = {
        "grpc unknown method": (unknown, frozenset({"UNIMPLEMENTED"})),
        "grpc metadata": (metadata, RPC_REFUSED | {"OK"}),
        "grpc huge metadata": (huge_metadata, frozenset({"RESOURCE_EXHAUSTED", "OK"})),
        "grpc number of messages": (messages, ANSWERED | {"UNIMPLEMENTED"}),
        "grpc noise to open services": (open_service, ANSWERED),
    }
    return [
        Attack(kind=kind, send=partial(checked_code, send), allowed=allowed, limit_s=limit_s)
        for kind, (send, allowed) in kinds.items()
    ]


def impatient_attacks(channel: grpc.Channel, limit_s: float) -> list[Attack]:
    """Good messages, and callers who do not wait for the answer."""

    def deadline(rng: random.Random) -> str:
        method, message = whole_message(rng)
        try:
            return call(channel, method, message, rng.choice((0.0001, 0.001, 0.005, 0.02)))[0]
        except grpc.RpcError as error:
            state: Any = error
            return str(state.code().name)

    def cancel(rng: random.Random) -> str:
        method, message = whole_message(rng)
        stub: Any = channel.unary_unary(SERVICE + method)
        future = stub.future(message, timeout=limit_s)
        time.sleep(rng.choice((0.0, 0.001, 0.005, 0.02)))
        future.cancel()
        return str(future.code().name)

    late = ANSWERED | {"DEADLINE_EXCEEDED"}
    return [
        Attack(kind="grpc tiny deadline", send=deadline, allowed=late, limit_s=limit_s),
        Attack(
            kind="grpc cancelled", send=cancel, allowed=ANSWERED | {"CANCELLED"}, limit_s=limit_s
        ),
    ]


def whole_message(rng: random.Random) -> tuple[str, bytes]:
    """A method's name and a message that it would answer."""
    images = [image_pb2.Image(encoded=any_whole(rng))]
    classes = [segment_pb2.SegmentClass(name="dog", prompts=["a dog", "dogs"])]
    texts = [f"text {rng.randrange(10**6)}", "\u00e9t\u00e9 \U0001f436"]
    messages: dict[str, Any] = {
        "EmbedImages": embed_pb2.EmbedImagesRequest(images=images * 2, resolution=224),
        "EmbedTexts": embed_pb2.EmbedTextsRequest(texts=texts),
        "SegmentImages": segment_pb2.SegmentImagesRequest(images=images, classes=classes),
        "GetModel": encoder_service_pb2.GetModelRequest(name=""),
    }
    method = rng.choice(list(messages))
    return method, messages[method].SerializeToString()
