"""Callers who leave, deadlines, priorities, shares, overload, texts and streams; all bare."""

import select
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.hostile.wire import DATA, PREFACE, SETTINGS, frame, http2_head, literal, opened
from tests.processes.callers import (
    CHANNEL,
    PROTOCOLS,
    Protocol,
    Question,
    ask,
    busy_lanes,
    in_order,
    until,
)
from tests.processes.server import LIMIT_S, Server, photo, start_server
from tests.promises.conftest import UNCACHED
from tipserve_client.generated import embed_pb2, image_pb2, stream_pb2
from tipserve_client.generated.encoder_service_pb2_grpc import EncoderServiceStub

ONE_LANE = (*UNCACHED, "--lanes=1", "--pool-threads=2")
BOTH = pytest.mark.parametrize("protocol", PROTOCOLS)
NUM_BUSY, NUM_OTHERS = 10, 8
QUEUED_IMAGES = 16
PATCHES = 64  # of an image of the native size


@pytest.fixture(scope="module")
def one_lane() -> Iterator[Server]:
    """A server whose work waits in one queue for one lane."""
    with start_server(*ONE_LANE, "--trusted-proxies=127.0.0.1") as server:
        yield server


def num_images(server: Server) -> float:
    """Images of all batches that were begun."""
    return server.metric("tipserve_batch_images_sum")


def num_in_progress(server: Server) -> float:
    return server.metric("tipserve_inflight")


@BOTH
@pytest.mark.parametrize("reason", ["leaves", "is late"])
def test_who_leaves_or_is_late_has_no_batch_run(
    one_lane: Server, protocol: Protocol, reason: str
) -> None:
    before = num_images(one_lane)
    timeout_ms = 200 if reason == "is late" else None
    question = Question(timeout_ms=timeout_ms, headers={"x-request-priority": "3"})
    with busy_lanes(one_lane, NUM_BUSY):
        asked = [ask(one_lane, protocol, question) for _ in range(NUM_OTHERS)]
        if reason == "leaves":
            until(lambda: num_in_progress(one_lane) == NUM_OTHERS + 1, "all wait")
            for one in asked:
                one.hang_up()
        else:
            ended = Counter(one.outcome().kind for one in asked)
            # Some are refused at once, because the queue is longer than their time.
            assert ended["late"] + ended["refused"] == NUM_OTHERS, ended
    until(lambda: num_in_progress(one_lane) == 0, "nobody is left")
    assert num_images(one_lane) - before == NUM_BUSY


@BOTH
def test_urgent_work_goes_first(one_lane: Server, protocol: Protocol) -> None:
    low = Question(resolution=448, headers={"x-request-priority": "3"})
    high = Question(headers={"x-request-priority": "1"})
    with busy_lanes(one_lane):
        asked = [("low", ask(one_lane, protocol, low)) for _ in range(4)]
        until(lambda: num_in_progress(one_lane) == 5, "the low ones wait")
        asked += [("high", ask(one_lane, protocol, high)) for _ in range(4)]
        names = in_order(asked)
    assert names == ["high"] * 4 + ["low"] * 4


@pytest.mark.parametrize(
    ("protocol", "hosts"),
    [
        ("rest", "of a trusted proxy"),
        ("grpc", "of a trusted proxy"),
        ("rest", "by address"),
        ("rest", "by address, one of them with forged headers"),
    ],
)
def test_two_hosts_share_the_lanes(one_lane: Server, protocol: Protocol, hosts: str) -> None:
    def question(host: int, number: int) -> Question:
        if hosts == "of a trusted proxy":
            return Question(resolution=224, headers={"x-forwarded-for": f"192.0.2.{host}"})
        forged = {"x-forwarded-for": f"192.0.2.{number}"} if "forged" in hosts and host else {}
        return Question(resolution=224, headers=forged, source=f"127.0.0.{2 + host}")

    with busy_lanes(one_lane):
        asked = [("many", ask(one_lane, protocol, question(1, n))) for n in range(16)]
        until(lambda: num_in_progress(one_lane) == 17, "the many wait")
        asked += [("few", ask(one_lane, protocol, question(0, n))) for n in range(4)]
        names = in_order(asked)
    served = Counter(names[: len(names) - names[::-1].index("few")])
    assert served["few"] == 4
    assert served["many"] <= 8, names


@pytest.fixture(scope="module")
def small_queue() -> Iterator[Server]:
    """A server that admits a few images at a time."""
    limit = QUEUED_IMAGES * PATCHES
    flags = (f"--max-batch-patches={limit}", f"--max-queue-patches={limit}")
    with start_server(*ONE_LANE, *flags) as server:
        yield server


@BOTH
def test_ten_times_capacity_is_served_or_refused(small_queue: Server, protocol: Protocol) -> None:
    """Whoever is let in is answered in his time, and no lane works for nobody."""
    before = num_images(small_queue)
    question = Question(timeout_ms=10_000)
    ended: Counter[str] = Counter()
    for _ in range(4):
        asked = [ask(small_queue, protocol, question) for _ in range(10 * QUEUED_IMAGES)]
        outcomes = [one.outcome() for one in asked]
        ended += Counter(outcome.kind for outcome in outcomes)
        assert all(outcome.has_retry for outcome in outcomes if outcome.kind == "refused")
    num_admitted = ended.total() - ended["refused"]
    assert ended["refused"] > 0, "or it was no overload"
    assert num_admitted >= 2 * QUEUED_IMAGES
    assert ended["served"] >= 0.95 * num_admitted, ended
    assert num_images(small_queue) - before == ended["served"]


def test_texts_are_computed_once_for_concurrent_callers(one_lane: Server) -> None:
    before = one_lane.metric("tipserve_batch_texts_sum")
    question = Question(texts=("a text nobody has asked for", "and another"))
    with busy_lanes(one_lane):
        asked = [ask(one_lane, protocol, question) for protocol in PROTOCOLS * 6]
        until(lambda: num_in_progress(one_lane) == 13, "all wait")
        assert {one.outcome().kind for one in asked} == {"served"}
    assert one_lane.metric("tipserve_batch_texts_sum") - before == 2


def stream_request(number: int, image: bytes, resolution: int = 112) -> stream_pb2.StreamRequest:
    images = [image_pb2.Image(encoded=image)]
    embed = embed_pb2.EmbedImagesRequest(images=images, resolution=resolution)
    return stream_pb2.StreamRequest(id=str(number), embed_images=embed)


def test_a_stream_keeps_its_order_around_a_bad_image(one_lane: Server) -> None:
    def requests() -> Iterator[Any]:
        for number in range(12):
            image = b"no image" if number == 5 else photo(number, (90, 60))
            # The first of each pair takes much longer than the second.
            yield stream_request(number, image, 112 if number % 2 else 448)

    with grpc.insecure_channel(one_lane.grpc, CHANNEL) as channel:
        answers = list(EncoderServiceStub(channel).Stream(requests(), timeout=LIMIT_S))
    assert [answer.index for answer in answers] == list(range(12))
    assert [answer.id for answer in answers] == [str(number) for number in range(12)]
    assert [a.index for a in answers if a.WhichOneof("response") == "error"] == [5]
    assert answers[5].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_a_stream_takes_no_more_than_its_window(one_lane: Server) -> None:
    num_taken, total = 0, 200
    image = photo(size=(160, 120), file_format="BMP")  # 58 kB, of which few fit into a socket

    def requests() -> Iterator[Any]:
        nonlocal num_taken
        for number in range(total):
            num_taken += 1
            yield stream_request(number, image)

    with busy_lanes(one_lane), grpc.insecure_channel(one_lane.grpc, CHANNEL) as channel:
        metadata = (("x-request-priority", "3"),)
        answers = EncoderServiceStub(channel).Stream(requests(), timeout=LIMIT_S, metadata=metadata)
        next(answers)
        num_before_the_first = num_taken
        assert sum(1 for _ in answers) == total - 1
    assert num_before_the_first <= total // 2


def slow_head(protocol: Protocol) -> bytes:
    """The head of a request of 100,000 bytes that ends after a second."""
    if protocol == "rest":
        head = (
            b"POST /v1/images:embed HTTP/1.1\r\nHost: localhost\r\nX-Request-Timeout-Ms: 1000\r\n"
        )
        return head + b"Content-Type: image/png\r\nContent-Length: 100000\r\n\r\n"
    block = http2_head(b"/tipserve.v1.EncoderService/EmbedImages") + literal(b"grpc-timeout", b"1S")
    message = frame(DATA, b"\0" + (100_000).to_bytes(4), stream=1)
    return PREFACE + frame(SETTINGS) + opened(1, block=block) + message


def is_ended(protocol: Protocol, received: bytes) -> bool:
    """Whether the server has answered or ended the request."""
    if protocol == "rest":
        return b"\r\n\r\n" in received
    while len(received) >= 9:
        length, kind = int.from_bytes(received[:3]), received[3]
        flags, stream = received[4], int.from_bytes(received[5:9])
        if stream == 1 and (kind == 3 or (kind == 1 and flags & 1)):
            return True
        received = received[9 + length :]
    return False


@BOTH
def test_a_slow_body_ends_at_the_deadline(student: Server, protocol: Protocol) -> None:
    """A piece is sent every 50 ms, so 20 until the deadline; all would take an hour and more."""
    port = student.ports["http" if protocol == "rest" else "grpc"]
    piece = b"x" if protocol == "rest" else frame(DATA, b"x", stream=1)
    received, num_pieces = b"", 0
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as connection:
        connection.sendall(slow_head(protocol))
        while not is_ended(protocol, received) and num_pieces < 300:
            readable, _, _ = select.select([connection], [], [], 0.05)
            if readable:
                got = connection.recv(65536)
                received += got
                if not got:
                    break
            else:
                connection.sendall(piece)
                num_pieces += 1
    assert is_ended(protocol, received)
    assert num_pieces < 200
    if protocol == "rest":
        assert received.startswith(b"HTTP/1.1 504")
