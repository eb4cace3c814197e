"""Bytes over plain TCP that are no HTTP, or HTTP that a proxy and a server may read differently."""

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from benchmarks.attacks.attack import Attack
from benchmarks.attacks.images import any_whole
from benchmarks.attacks.raw_socket import (
    HEAD_END,
    connected,
    exchange,
    read_answer,
    receive,
    reset,
    send_until,
)

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
    """Send it, and then nothing more: half closed, so that nobody waits for the rest."""
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


def attacks(port: int, limit_s: float) -> Iterator[Attack]:
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
