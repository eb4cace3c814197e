"""Peak memory of a server under hostile requests, and how long they lock honest callers out.

Claim: no attack kills a server in 2 GiB, delays a health check by more than 10 s, or locks an
honest caller out for longer: from the first call that fails or waits to the next answer. Each
attack has a fresh server with API keys behind HAProxy, and comes from eight other addresses than
the honest callers; those called "no key" send none. Health checks go past the proxy.
Run: python -m benchmarks.memory_attacks [--attack TEXT] [--group FOLDER] [--lowest-priority]
FOLDER is a memory control group, such as /sys/fs/cgroup/memory/attacks with a limit of 2 GiB.
"""

import argparse
import http.client
import io
import multiprocessing
import os
import selectors
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, cast

import grpc
from PIL import Image

from benchmarks.answer_peaks import (
    NUM_IN_BATCH,
    SIDE,
    File,
    Model,
    document,
    inputs,
    streams,
)
from benchmarks.http2_attacks import (
    EMBED,
    KEY,
    PREFACE,
    SEGMENT,
    STREAM,
    WRONG_KEY,
    Attack,
    attacker,
    flood,
    floods,
    prefixed,
    repeated_rpcs,
    request_headers,
    silent_rpcs,
    unfinished,
)
from benchmarks.load import photo_like_jpeg
from service.grpc.generated import (
    embed_pb2,
    encoder_service_pb2_grpc,
    image_pb2,
    segment_pb2,
)
from tests.processes.front import BEHIND, Front
from tests.processes.service_process import RunningService, peak_mib, running_service

# Of Linux; not among Python's constants.
IP_BIND_ADDRESS_NO_PORT = 24
BEFORE_S, AFTER_S = 3.0, 3.0
# The first seconds of an attack, in which all its connections arrive at once.
BURST_S = 5.0
# Between two calls of an honest caller.
PAUSE_S = 0.2
# Field 2 of a message, which is unknown to health and an image's field in ours.
LARGE_MESSAGE = b"\x12\x80\x80\xf8\x0f" + bytes(33_423_360)
HEALTH: Final = "/grpc.health.v1.Health/Check"
MAX_CONNECTIONS: Final = 1024
JSON: Final = "application/json"
# A mask of so many pixels a side has 46 MB.
UNREAD_SIDE: Final = 4800
# When a call began and ended, and whether it was answered.
HonestCall = tuple[float, float, bool]


def png(side: int = SIDE) -> bytes:
    """A few kilobytes that are many pixels, by default 40 million."""
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    return stream.getvalue()


def post(service: RunningService, path: str, body: bytes, *, media: str, accept: str) -> str:
    """Status of one request, or the name of the error; the answer is read and dropped."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", service.http_port, timeout=120, source_address=attacker()
    )
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


def over_rest(
    path: str, body: bytes, media: str, accept: str = "application/json", *, num_clients: int = 4
) -> Attack:
    """Clients that repeat one request."""
    return lambda service: together(
        lambda: post(service, path, body, media=media, accept=accept), num_clients, 6.0
    )


def endless_trailers(service: RunningService) -> str:
    """Send trailers after a chunked body until the server closes."""
    head = b"POST /v1/images:embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.http_port), None, attacker()) as connection:
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
    address = ("127.0.0.1", service.http_port)
    connections = [socket.create_connection(address, 10, attacker()) for _ in range(8)]
    for connection in connections:
        connection.sendall(head + b"Content-Type: image/png\r\nContent-Length: 33554432\r\n\r\n")
    image = next(body for name, _, body in inputs() if "JPEG" in name)
    path = "/v1/images:classify?classes=dog"
    found = over_rest(path, image, "image/jpeg")(service)
    for connection in connections:
        connection.close()
    return found


def slow_readers(num_readers: int, side: int = SIDE, seconds: float = 25.0) -> Attack:
    """Clients that read a mask at 5 kB a second; those that are refused ask again after that."""
    image = png(side)
    head = (
        "POST /v1/images:segment?classes=dog HTTP/1.1\r\nHost: localhost\r\n"
        f"X-Api-Key: {KEY}\r\nAccept: application/x-npy\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(image)}\r\n\r\n"
    )

    def ask(port: int) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # The port is chosen at `connect`, else those of closed connections count as taken.
        connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind(attacker())
        connection.connect(("127.0.0.1", port))
        connection.sendall(head.encode() + image)
        connection.setblocking(False)
        return connection

    def attack(service: RunningService) -> str:
        found: Counter[str] = Counter()
        readers = [ask(service.http_port) for _ in range(num_readers)]
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            for index, reader in enumerate(readers):
                with suppress(BlockingIOError):
                    try:
                        data = reader.recv(520)
                    except ConnectionError:
                        data = b""
                    if data.startswith(b"HTTP/1.1 "):
                        found[data[9:12].decode()] += 1
                    if not data or data.startswith(b"HTTP/1.1 4"):
                        reader.close()
                        readers[index] = ask(service.http_port)
            time.sleep(max(0.0, now + 0.1 - time.monotonic()))
        for reader in readers:
            reader.close()
        return str(dict(found))

    return attack


def call_honestly(pipe: Connection, http_port: int, grpc_port: int) -> None:
    """In a process of its own: embed an image five times a second over each protocol.

    For each message, sends the calls since the last one: by protocol, the time at which each began
    and ended and whether it was answered.
    """
    image = photo_like_jpeg(0)
    message = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=image)])
    channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")
    stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)

    def over_rest() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=60)
        headers = {"Content-Type": "image/jpeg", "X-Api-Key": KEY}
        connection.request("POST", "/v1/images:embed", image, headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            raise OSError(answer.status)

    def over_grpc() -> None:
        stub.EmbedImages(message, timeout=60, metadata=(("x-api-key", KEY),))

    made: dict[str, list[HonestCall]] = {"REST": [], "gRPC": []}

    def repeat(name: str, call: Callable[[], None]) -> None:
        while True:
            began, is_answered = time.monotonic(), True
            try:
                call()
            except (OSError, http.client.HTTPException, grpc.RpcError):
                is_answered = False
            made[name].append((began, time.monotonic(), is_answered))
            time.sleep(PAUSE_S)

    for name, call in (("REST", over_rest), ("gRPC", over_grpc)):
        threading.Thread(target=repeat, args=(name, call), daemon=True).start()
    while pipe.recv():
        pipe.send({name: [ended.pop(0) for _ in list(ended)] for name, ended in made.items()})


def calls(method: str, num_calls: int, compression: grpc.Compression | None = None) -> Attack:
    """RPCs with a message of 33 MB each, all at once over four connections."""

    def attack(service: RunningService) -> str:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        target = f"127.0.0.1:{service.grpc_port}"
        channels = [grpc.insecure_channel(target, options) for _ in range(4)]  # not from attackers
        metadata = () if method == HEALTH else (("x-api-key", KEY),)
        rpcs: list[Any] = [channel.unary_unary(method) for channel in channels]
        options_of = {"timeout": 20, "compression": compression, "metadata": metadata}
        futures = [rpcs[n % 4].future(LARGE_MESSAGE, **options_of) for n in range(num_calls)]
        codes = Counter(future.code().name for future in futures)
        for channel in channels:
            channel.close()
        return str(dict(codes))

    return attack


def open_connections(port_name: str, opening: bytes, *, num: int, seconds: float) -> Attack:
    """Connections that send a few bytes and then nothing; each is opened again when it closes."""

    def attack(service: RunningService) -> str:
        address = ("127.0.0.1", getattr(service, port_name))
        num_opened = 0

        def opened() -> socket.socket:
            connection = socket.create_connection(address, 10, attacker())
            connection.sendall(opening)
            connection.setblocking(False)
            return connection

        until = time.monotonic() + seconds
        connections: list[socket.socket] = []
        while time.monotonic() < until:
            for connection in list(connections):
                with suppress(BlockingIOError):
                    try:
                        data = connection.recv(4096)
                    except ConnectionError:
                        data = b""
                    if not data:
                        connections.remove(connection)
                        connection.close()
            while len(connections) < num and time.monotonic() < until:
                with suppress(OSError):
                    connections.append(opened())
                    num_opened += 1
            time.sleep(0.1)
        for connection in connections:
            connection.close()
        return f"{num_opened} opened, {len(connections)} at the end"

    return attack


class RepeatedRequest:
    """One connection on which a request is sent again as soon as it is answered."""

    def __init__(self, port: int, request: bytes) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        self._socket.bind(attacker())
        self._socket.connect(("127.0.0.1", port))
        self._request, self._answer = request, b""
        self._socket.sendall(request)

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def close(self) -> None:
        """End it."""
        self._socket.close()

    def receive(self) -> str:
        """Handle what has arrived: the status if that ends an answer, else nothing.

        Raises:
            OSError: The connection is closed.
        """
        data = self._socket.recv(65_536)
        if not data:
            raise OSError("closed")
        self._answer += data
        if not self._answer.endswith(b"}"):  # the error, as JSON
            return ""
        status, self._answer = self._answer[9:12].decode(), b""
        self._socket.sendall(self._request)
        return status


def refused_again(request: bytes, num_connections: int, seconds: float = 15.0) -> Attack:
    """A request on many connections, sent again as soon as it is refused."""

    def attack(service: RunningService) -> str:
        found: Counter[str] = Counter()
        poll = selectors.DefaultSelector()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(OSError):
                while len(poll.get_map()) < num_connections:
                    client = RepeatedRequest(service.http_port, request)
                    poll.register(client, selectors.EVENT_READ)
            for key, _ in poll.select(0.05):
                client = cast("RepeatedRequest", key.fileobj)
                try:
                    found[client.receive()] += 1
                except OSError:
                    found["closed"] += 1
                    poll.unregister(client)
                    client.close()
        for key in list(poll.get_map().values()):
            cast("RepeatedRequest", key.fileobj).close()
        del found[""]
        return f"{dict(found)}, {sum(found.values()) / seconds:.0f} a second"

    return attack


def full_of_bodies(service: RunningService) -> str:
    """Bodies at the lowest rate on all connections; others are refused with 503, and ask again."""
    length, piece = 400_000, bytes(4096 + 512)
    request = head("/v1/images:embed", KEY, "image/png", length)
    address = ("127.0.0.1", service.http_port)
    bodies = [socket.create_connection(address, 10, attacker()) for _ in range(MAX_CONNECTIONS)]
    is_over = threading.Event()

    def send() -> None:
        for body in bodies:
            body.setblocking(False)
        data, num_sent = request, 0
        while not is_over.wait(1.0) and num_sent + len(data) < length:
            for body in bodies:
                with suppress(OSError):
                    body.send(data)
            num_sent += len(data)
            data = piece

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    time.sleep(2)
    found = refused_again(request, 64, 20.0)(service)
    is_over.set()
    sender.join()
    for body in bodies:
        body.close()
    return found


def head(path: str, key: str, media: str = "image/png", length: int = 0) -> bytes:
    """The head of a request; no length: a body without bytes."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {key}\r\n"
        f"Content-Type: {media}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def large_inputs() -> dict[str, Attack]:
    """Requests of a few kilobytes whose images the model sees at a large size, or many of them."""
    small = png(64)
    webp = next(File(*file) for file in inputs() if file[0] == "largest WEBP")
    _, request = streams(Model("", ()), webp)["gRPC Stream, segment"]
    eight = prefixed(request.SerializeToString()) * NUM_IN_BATCH
    path = "/v1/images:embed"
    asked = {
        "8 images seen at 1280": ("resolution=1280", 8, 16),
        "32 images seen at 896": ("resolution=896", 32, 16),
        "10 images seen at 768, 8 clients": ("resolution=768", 10, 8),
        "24 clients with 32 images each": ("", 32, 24),
    }
    made = {
        name: over_rest(path, document(query, small, num_images), JSON, num_clients=num_clients)
        for name, (query, num_images, num_clients) in asked.items()
    }
    stream = repeated_rpcs(request_headers(STREAM), eight, num_rpcs=1, num_connections=4)
    mask = segment_pb2.SegmentImagesRequest(
        images=[image_pb2.Image(encoded=png(UNREAD_SIDE))],
        classes=[segment_pb2.SegmentClass(name="dog")],
    )
    unread = repeated_rpcs(
        request_headers(SEGMENT),
        prefixed(mask.SerializeToString()),
        num_rpcs=4,
        num_connections=8,
        seconds=60.0,
        has_window=False,
    )
    return made | {
        "8 masks of the largest WebP on a stream, 4 clients": stream,
        "32 masks of 46 MB over gRPC that are not read": unread,
    }


def refusals() -> dict[str, Attack]:
    """Requests that are refused, and sent again without pause."""
    wrong = request_headers(EMBED, WRONG_KEY)
    wrong_head = head("/v1/images:embed", WRONG_KEY)
    return {
        "wrong keys over REST, 256 connections": refused_again(wrong_head, 256),
        "wrong keys over gRPC, 16 connections": repeated_rpcs(
            wrong, num_rpcs=32, num_connections=16
        ),
        "1,024 slow bodies, 64 connections refused with 503": full_of_bodies,
    }


def attacks() -> dict[str, Attack]:
    """Every attack by name."""
    image, gzip = png(), grpc.Compression.Gzip
    tiff = next(body for name, _, body in inputs() if "TIFF" in name)
    wrong = b'{"texts": [' + b",".join([b"0"] * 1_000_000) + b"]}"
    mask = "/v1/images:segment?classes=dog"
    photo = photo_like_jpeg(0)
    segments = photo[:2] + b"\xff\xe1\0\2" * 4_000_000 + photo[2:]
    slide = f"{mask},{','.join(f'dog{n}' for n in range(48))}&mode=slide&resolution=448"
    large = "/v1/images:embed?resolution=448"
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
        "slow readers": slow_readers(30),
        "1,000 connections of unfinished messages": unfinished(EMBED, 1, 1000, 60.0),
        "1,000 slow readers": slow_readers(1000, 1024, 60.0),
        "a million wrong values": over_rest("/v1/texts:embed", wrong, JSON),
        "four million segments of a JPEG": over_rest("/v1/images:embed", segments, "image/jpeg"),
        "slide mode with 49 classes": over_rest(slide, image, "image/png"),
        "128 clients over REST": over_rest(large, photo, "image/jpeg", num_clients=128),
        "1,060 unfinished heads, no key": open_connections(
            "http_port", b"POST /v1/images:embed HTTP/1.1\r\n", num=1060, seconds=30.0
        ),
        "1,100 idle gRPC connections, no key": open_connections(
            "grpc_port", PREFACE, num=1100, seconds=30.0
        ),
        "512 RPCs without a message, 64 watches": silent_rpcs,
        **large_inputs(),
        **refusals(),
        **{f"{kind} frames, no key": flood(kind) for kind in floods() if kind != "CONTINUATION"},
        "CONTINUATION frames, 4 connections, no key": flood("CONTINUATION"),
        "CONTINUATION frames, 32 connections, no key": flood("CONTINUATION", num_connections=32),
        "PING frames, answers not read, no key": flood("PING", is_reading=False),
        "SETTINGS frames, answers not read, no key": flood("SETTINGS", is_reading=False),
    }


def health_s(service: RunningService) -> float:
    """Seconds until liveness is answered; infinite if it is not."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", service.metrics_port, timeout=30)
    try:
        connection.request("GET", "/v2/health/live")
        is_live = connection.getresponse().status == 200
    except OSError:
        is_live = False
    finally:
        connection.close()
    return time.monotonic() - began if is_live else float("inf")


def p99(calls: list[HonestCall]) -> str:
    """The 99th percentile of the seconds of calls that were answered, and their number."""
    if not calls:
        return "no call"
    answered = sorted(ended - began for began, ended, is_answered in calls if is_answered)
    quantile = answered[int(0.99 * (len(answered) - 1))] if answered else float("inf")
    return f"{quantile:.3f} s of {len(answered)}/{len(calls)}"


def lock_out_s(calls: list[HonestCall], since: float, until: float) -> float:
    """Longest time without an answer: from the begin of a call to the next answer."""
    longest = 0.0
    for began, ended, is_answered in calls:
        since = min(since, began)
        longest = max(longest, ended - since)
        if is_answered:
            since = ended + PAUSE_S
    return max(longest, until - since)  # the last call may still wait


def at_lowest_priority(attack: Attack) -> Attack:
    """The attack with idle CPU time only, as if on a machine of its own."""

    def attack_idly(service: RunningService) -> str:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # and of the threads it starts
        try:
            return attack(service)
        finally:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

    return attack_idly


def run(service: RunningService, proxy_pid: int, attack: Attack) -> str:
    """A row of the table: what an attack took of memory, and what honest callers waited."""
    ours, theirs = multiprocessing.Pipe()
    caller = multiprocessing.get_context("spawn").Process(
        target=call_honestly, args=(theirs, service.http_port, service.grpc_port), daemon=True
    )
    caller.start()
    time.sleep(BEFORE_S)
    ours.send(True)
    before = ours.recv()
    is_over = threading.Event()
    waits_s = [health_s(service)]

    def watch() -> None:
        while not is_over.wait(0.3):
            waits_s.append(health_s(service))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    for pid in (service.pid, proxy_pid):
        peak_mib(pid, reset=True)
    started, cpu_s = time.monotonic(), service.cpu_s()
    outcome = attack(service)
    time.sleep(AFTER_S)
    ours.send(True)
    during = ours.recv()
    now = time.monotonic()
    is_over.set()
    watcher.join(40)
    ours.send(False)
    caller.join(60)
    is_killed = service.process.poll() is not None
    num_cores = 0.0 if is_killed else (service.cpu_s() - cpu_s) / (now - started)
    peak = "" if is_killed else f"{peak_mib(service.pid):.0f} + {peak_mib(proxy_pid):.0f} MiB"
    locked = ", ".join(
        f"{n} {lock_out_s(calls, started, now):.1f} s" for n, calls in during.items()
    )
    others = "; ".join(
        f"{n} {p99(before[n])} -> {p99(calls)}, first {BURST_S:g} s "
        f"{p99([call for call in calls if call[0] < started + BURST_S])}, then "
        f"{p99([call for call in calls if call[0] >= started + BURST_S])}"
        for n, calls in during.items()
    )
    killed = "yes" if is_killed else "no"
    waited = f"{max(waits_s):.1f} s | {num_cores:.2f}"
    return f"{peak} | {killed} | {locked} | {waited} | {others} | {outcome} |"


def main() -> None:
    """Run each attack against a server of its own, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", default="", help="part of an attack's name; default: all")
    parser.add_argument("--group", default="", help="folder of a memory control group")
    parser.add_argument(
        "--lowest-priority", action="store_true", help="attack with idle CPU time only"
    )
    options = parser.parse_args()
    os.environ["TIPSERVE_API_KEYS"] = KEY
    enter = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', options.group)
    priority = "idle CPU time only" if options.lowest_priority else "the server's priority"
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}, attackers with {priority}\n")
    columns = "peak | killed | lock-out | health | cores | p99 of honest calls | outcome"
    print(f"| attack | {columns} |")
    print("|" + " --- |" * 8)
    for name, attack in attacks().items():
        if options.attack in name:
            with ExitStack() as stack:
                prefix = enter if options.group else ()
                bare = stack.enter_context(running_service(*BEHIND, prefix=prefix))
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                front = stack.enter_context(Front(folder, bare.http_port, bare.grpc_port))
                ports = {"http_port": front.http_port, "grpc_port": front.grpc_port}
                made = at_lowest_priority(attack) if options.lowest_priority else attack
                row = run(replace(bare, **ports), front.process.pid, made)
                print(f"| {name} | {row}", flush=True)


if __name__ == "__main__":
    main()
