"""What requests take of the server's memory and CPU, and what damage it survives; all bare."""

import base64
import io
import json
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image

from tests.processes.callers import (
    CHANNEL,
    PROTOCOLS,
    Protocol,
    Question,
    ask,
    begin_rpc,
    grpc_outcome,
    until,
)
from tests.processes.server import LIMIT_S, Server, memory_mib, peak_mib, photo
from tipserve_client.generated import (
    classify_pb2,
    dense_pb2,
    embed_pb2,
    features_pb2,
    image_pb2,
    segment_pb2,
)
from tipserve_client.generated.encoder_service_pb2_grpc import EncoderServiceStub

BOTH = pytest.mark.parametrize("protocol", PROTOCOLS)
SIDES = (6300, 5300, 4700, 4100, 3500, 2900, 2300, 1600)
MEDIA = {"npy": "application/x-npy", "raw": "application/octet-stream", "png": "image/png"}
ANY = "list base64 npy raw png"
REST_FORMS = {
    "segment?classes=dog,cat": ANY,
    "segment?classes=dog,cat&mode=slide": ANY,
    "segment?classes=dog,cat&include_scores=true": "list base64 raw",
    "segment?classes=dog,cat&include_instances=true": "list base64",
    "segment?classes=dog,cat&format=polygons": "list",
    "segment?classes=dog,cat&format=rle_counts": "list",
    "segment?classes=dog,cat&format=labels": "png",
    "segment?classes=dog,cat&format=overlay": "png",
    f"segment?classes={','.join(f'c{n}' for n in range(256))}": "list base64",
    f"segment?classes={','.join(f'c{n}' for n in range(255))}&quality=fine&background=auto": "png",
    "features": ANY,
    "features?kind=groups": ANY,
    "features?kind=component": ANY,
    "embed?outputs=patches,values,cls1,cls2": "list base64 raw",
    "embed?outputs=patches,values&dtype=float16": "list",
    "embed?outputs=patches,values&resolution=768": "list base64 raw",
    "embed?outputs=depth,normals": "list base64 raw",
    "classify?classes=dog,cat": "list npy",
    "depth": ANY,
    "depth?format=colors": "png",
    "normals": ANY,
}
MAX_IDLE_MIB, MAX_ONE_MIB, MAX_CROWD_MIB = 320, 512, 1024


def encoded(image: Image.Image, file_format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format)
    return stream.getvalue()


def rest_forms(server: Server) -> Iterator[tuple[str, Callable[[bytes], bool]]]:
    """Each form of each answer: its name, and a function that says whether it is answered."""
    for path, forms in REST_FORMS.items():
        for form in forms.split():
            url = f"{server.rest}/v1/images:{path}"
            if form == "base64":
                url += f"{'&' if '?' in path else '?'}encoding=base64"
            headers = {"Accept": MEDIA.get(form, "application/json"), "Content-Type": "image/png"}

            def answers(image: bytes, url: str = url, headers: Any = headers) -> bool:
                with httpx.stream(
                    "POST", url, content=image, headers=headers, timeout=LIMIT_S
                ) as answer:
                    for _ in answer.iter_raw():
                        pass
                    assert answer.status_code in {200, 413}, (url, answer.status_code)
                    return answer.status_code == 200

            yield f"{path[:60]} {form}", answers


def grpc_forms(stub: Any) -> Iterator[tuple[str, Callable[[bytes], bool]]]:
    classes = [segment_pb2.SegmentClass(name=name) for name in ("dog", "cat")]
    segment, features = segment_pb2.SegmentImagesRequest, features_pb2.VisualizeFeaturesRequest
    outputs = [f"IMAGE_OUTPUT_{name}" for name in ("PATCHES", "VALUES", "DEPTH", "NORMALS")]
    slide = segment_pb2.SEGMENT_MODE_SLIDE
    requests: list[Any] = [
        segment(classes=classes),
        segment(classes=classes, include_scores=True),
        segment(classes=classes, mode=slide),
        segment(classes=classes, include_instances=True),
        *(features(kind=f"FEATURE_KIND_{k}") for k in ("COLORS", "COMPONENT", "GROUPS")),
        embed_pb2.EmbedImagesRequest(outputs=outputs[:2]),
        embed_pb2.EmbedImagesRequest(outputs=outputs[2:]),
        classify_pb2.ClassifyImagesRequest(classes=classes),
        dense_pb2.EstimateDepthRequest(),
        dense_pb2.EstimateNormalsRequest(),
    ]
    for request in requests:
        rpc = type(request).__name__.removesuffix("Request")

        def answers(image: bytes, request: Any = request, rpc: str = rpc) -> bool:
            del request.images[:]
            request.images.add(encoded=image)
            try:
                getattr(stub, rpc)(request, timeout=LIMIT_S)
            except grpc.RpcError as error:
                status: Any = error
                assert status.code() is grpc.StatusCode.INVALID_ARGUMENT, status.details()
                return False
            return True

        yield f"gRPC {rpc} {str(request)[:60]!r}", answers


def test_one_small_request_in_any_form_takes_at_most_512_mib(default: Server) -> None:
    """Of images of a few kB, each form of answer gets the largest that it is given for."""
    files = [encoded(Image.new("1", (side, side))) for side in SIDES]
    assert len(files[0]) < 8000
    peaks: dict[str, float] = {}
    until(
        lambda: memory_mib(default.process.pid) <= MAX_IDLE_MIB, "what earlier tests took is back"
    )
    with grpc.insecure_channel(default.grpc, CHANNEL) as channel:
        forms = [*rest_forms(default), *grpc_forms(EncoderServiceStub(channel))]
        for name, answers in forms:
            peak_mib(default.process.pid, reset=True)
            # What follows the end of a PNG is ignored, but the cache takes it for another image.
            if any(answers(file + name.encode()) for file in files):
                peaks[name] = peak_mib(default.process.pid)
    assert len(peaks) >= 60, sorted({name for name, _ in forms} - peaks.keys())
    highest = sorted(peaks.items(), key=lambda item: -item[1])
    assert highest[0][1] <= MAX_ONE_MIB, highest[:5]


@BOTH
def test_32_photographs_of_12_megapixels_at_once_are_answered(
    default: Server, protocol: Protocol
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    image = encoded(Image.fromarray(noise).resize((4000, 3000)), "JPEG")
    peak_mib(default.process.pid, reset=True)

    def kind(number: int) -> str:
        own = image + f"{protocol} {number}".encode()
        return ask(default, protocol, Question(images=[own])).outcome().kind

    with ThreadPoolExecutor(32) as pool:
        kinds = list(pool.map(kind, range(32)))
    assert kinds == ["served"] * 32
    assert peak_mib(default.process.pid) <= MAX_CROWD_MIB


@BOTH
def test_cancelled_requests_leave_nothing_behind(student: Server, protocol: Protocol) -> None:
    pid = student.process.pid

    def cancel(number: int) -> None:
        """Hang up on so many requests, 25 at a time, while they wait or run."""
        for _ in range(number // 25):
            asked = [ask(student, protocol, Question(resolution=224)) for _ in range(25)]
            until(lambda: student.metric("tipserve_inflight") > 0, "some have come in")
            for one in asked:
                one.hang_up()
        until(lambda: student.metric("tipserve_inflight") == 0, "nobody is left")

    cancel(100)
    before = memory_mib(pid)
    cancel(500)  # over each protocol
    assert memory_mib(pid) <= 1.1 * before
    assert ask(student, protocol, Question()).outcome().kind == "served"


def png_chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


@cache
def damaged_images() -> dict[str, bytes]:
    good = photo()
    head = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", b"x")
    return {
        "nothing": b"",
        "no image": b"GET / HTTP/1.1",
        "half an image": good[: len(good) // 2],
        "a damaged head": good[:2] + b"\0" * 20 + good[22:],
        "a PNG of exapixels": huge,
        "a bomb": encoded(Image.new("1", (20_000, 20_000))),
    }


@BOTH
@pytest.mark.parametrize("damage", damaged_images())
def test_a_damaged_image_is_the_callers_error(
    student: Server, protocol: Protocol, damage: str
) -> None:
    image = damaged_images()[damage]
    assert ask(student, protocol, Question(images=[image])).outcome().kind == "invalid"
    assert ask(student, protocol, Question()).outcome().kind == "served"


@cache
def bombs() -> dict[str, tuple[str, bytes]]:
    """Paths and bodies of JSON."""
    embed, texts = "/v1/images:embed", "/v1/texts:embed"
    image = base64.b64encode(photo()).decode()
    names = {f"n{number}": 1 for number in range(200_000)}
    classes = {"image": image, "classes": ["x" * 1_000_000]}
    return {
        "nesting": (texts, b'{"texts":' + b"[" * 1_000_000),
        "closed nesting": (texts, b'{"texts":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        "values": (texts, b'{"texts":[' + b'"",' * 3_000_000 + b'""]}'),
        "numbers": (embed, b'{"resolution":1' + b"0" * 4_000_000 + b"}"),
        "names": (embed, json.dumps({"image": image, **names}).encode()),
        "a huge name": (embed, json.dumps({"image": image, "x" * 4_000_000: 1}).encode()),
        "a huge class": ("/v1/images:segment", json.dumps(classes).encode()),
        "a huge model": (embed, json.dumps({"image": image, "model": "x" * 4_000_000}).encode()),
        "a huge tensor": (
            "/v2/models/tipserve-student/infer",
            b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":['
            + b"1," * 5_000_000
            + b"1]}]}",
        ),
    }


@pytest.mark.parametrize("bomb", bombs())
def test_a_bomb_of_json_is_the_callers_error(student: Server, bomb: str) -> None:
    path, body = bombs()[bomb]
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(student.rest + path, content=body, headers=headers, timeout=LIMIT_S)
    assert 400 <= answer.status_code < 500, answer.text[:200]
    assert ask(student, "rest", Question()).outcome().kind == "served"


@pytest.mark.parametrize("field", ["model", "name of a class", "number of texts"])
def test_a_huge_message_is_the_callers_error(student: Server, field: str) -> None:
    images = [image_pb2.Image(encoded=photo())]
    requests = {
        "model": embed_pb2.EmbedImagesRequest(images=images, model="x" * 4_000_000),
        "name of a class": segment_pb2.SegmentImagesRequest(
            images=images, classes=[segment_pb2.SegmentClass(name="x" * 1_000_000)]
        ),
        "number of texts": embed_pb2.EmbedTextsRequest(texts=[""] * 3_000_000),
    }
    request = requests[field]
    rpc = type(request).__name__.removesuffix("Request")
    with grpc.insecure_channel(student.grpc, CHANNEL) as channel:
        stub: Any = EncoderServiceStub(channel)
        outcome = grpc_outcome(getattr(stub, rpc).future(request, timeout=LIMIT_S))
        assert outcome.kind in {"invalid", "refused"} or outcome.status == "NOT_FOUND", outcome
        assert len(outcome.text) < 4000
        assert grpc_outcome(begin_rpc(stub, Question())).kind == "served"


def test_a_form_of_300000_parts_costs_little(student: Server) -> None:
    """No more than ten times a form of 300 parts and as many bytes."""

    def cost(num_parts: int, length: int) -> tuple[int, float]:
        head = b'--xyz\r\nContent-Disposition: form-data; name="outputs"\r\n\r\n'
        body = (head + b"c" * length + b"\r\n") * num_parts + b"--xyz--\r\n"
        before = student.cpu_s()
        answer = httpx.post(
            f"{student.rest}/v1/images:embed",
            content=body,
            headers={"Content-Type": "multipart/form-data; boundary=xyz"},
            timeout=LIMIT_S,
        )
        return answer.status_code, student.cpu_s() - before

    ordinary = max(cost(300, 64_000)[1] for _ in range(2))
    status, many = cost(300_000, 4)
    assert status == 413
    assert many <= 10 * ordinary


NUM_SLOW, NUM_PROBES = 300, 10


def test_probes_answer_beside_300_slow_connections(student: Server) -> None:
    """A kubelet gives a probe a second by default; one in ten may fail."""
    address = ("127.0.0.1", student.ports["metrics"])
    slow: list[socket.socket] = []

    def trickle() -> None:
        """Send one more byte of each head, and open again what the server has closed."""
        for connection in list(slow):
            try:
                connection.send(b"x")
            except BlockingIOError:
                pass  # not connected yet
            except OSError:
                connection.close()
                slow.remove(connection)
        while len(slow) < NUM_SLOW:
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex(address)
            slow.append(connection)

    num_answered = 0
    try:
        trickle()
        for _ in range(NUM_PROBES):
            trickle()
            with suppress(httpx.TransportError):
                num_answered += httpx.get(student.ready, timeout=1.0).status_code == 200
    finally:
        for connection in slow:
            connection.close()
    assert num_answered >= 0.9 * NUM_PROBES
