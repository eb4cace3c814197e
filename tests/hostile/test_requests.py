"""Broken and hostile requests over both protocols: each gets a right status, and nothing breaks.

Damage of each format of images is in `tests/model/test_image_codec.py`; requests that take memory
are in `tests/promises/test_memory.py`.
"""

import json
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import pytest
from PIL import Image

from service.grpc.generated import embed_pb2, image_pb2, segment_pb2
from tests.processes.server import Server, start_server
from tests.tools import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LIMIT_S = 60.0
NUM_EACH, NUM_AT_ONCE = 25, 4
MIB: Final = 2**20
SERVICE: Final = "/tipserve.v1.EncoderService/"
METHODS: Final = ("EmbedImages", "EmbedTexts", "SegmentImages", "GetModel", "ListModels")
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
# What must not be in an answer.
LEAKS: Final = ("Traceback", "Exception", "Error:", ".py", "site-packages", "object at 0x")
JSON: Final = "application/json"
FORM: Final = "multipart/form-data; boundary=b"
REFUSED: Final = {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
ANSWERED: Final = REFUSED | {"OK", "NOT_FOUND"}
Send = Callable[[grpc.Channel, random.Random], object]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server, which is well after all tests."""
    log = tmp_path_factory.mktemp("hostile") / "service.log"
    with start_server("--model=bundled-student", log=log) as service:
        yield service
        assert httpx.get(service.ready, timeout=LIMIT_S).status_code == 200
        assert service.metric("tipserve_inflight") == 0
    assert service.process.returncode == 0
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if json.loads(line)["level"] == "ERROR"] == []


@pytest.fixture(scope="module")
def channel(service: Server) -> Iterator[grpc.Channel]:
    """With no limits but the server's."""
    names = ("send_message_length", "receive_message_length", "metadata_size")
    options = [(f"grpc.max_{name}", 2**26) for name in names]
    with grpc.insecure_channel(service.grpc, options) as channel:
        yield channel


def repeat(send: Callable[[random.Random], object]) -> None:
    """Send with many seeds, some at once."""
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        list(pool.map(lambda seed: send(random.Random(seed)), range(NUM_EACH)))


def check_rest(service: Server, path: str, media: str, body: bytes) -> None:
    headers = {"Content-Type": media}
    answer = httpx.post(f"{service.rest}/v1/{path}", content=body, headers=headers, timeout=LIMIT_S)
    assert answer.status_code in {200, 413, 415, 422, 429}, answer.text[:300]
    if answer.status_code >= 400:
        assert json.loads(answer.content)["error"].keys() == {"message", "type", "code", "param"}
        assert not any(leak in answer.text for leak in LEAKS), answer.text


def check_grpc(send: Callable[[], object], allowed: set[str]) -> None:
    try:
        send()
        code, details = "OK", ""
    except grpc.RpcError as error:
        state: Any = error
        code, details = state.code().name, state.details() or ""
    assert code in allowed, (code, details)
    assert not any(leak in details for leak in LEAKS), details


def call(channel: grpc.Channel, path: str, message: bytes, **options: Any) -> object:
    stub: Any = channel.unary_unary(path)
    return stub(message, timeout=LIMIT_S, **options)


@cache
def whole(file_format: str) -> bytes:
    stream = BytesIO()
    Image.linear_gradient("L").resize((120, 90)).save(stream, file_format)
    return stream.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, with a few wrong bits, or with a piece of it many times."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(min(len(data), rng.choice((200, 10**6))))] ^= 1 << rng.randrange(8)
    place = rng.randrange(len(data))
    pieces = (bytes(changed), data[:place], data[:place] + data[place // 2 :] * rng.randrange(2, 9))
    return rng.choice(pieces)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros(num_mib: int) -> bytes:
    """Zeros, compressed about a thousand times, without holding them in memory."""
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(MIB)) for _ in range(num_mib)), packer.flush()])


@cache
def bombs() -> dict[str, bytes]:
    """Small files that become large by dimensions, frames, chunks, profiles or scans."""
    png, jpeg = whole("PNG"), whole("JPEG")
    start, end = png[:33], png[33:]
    sized = struct.pack(">II", 6300, 6300)
    head = png[:8] + chunk(b"IHDR", sized + b"\x08\x02\0\0\0")
    wide = png[:8] + chunk(b"IHDR", sized + b"\x10\x06\0\0\1")
    control = chunk(b"acTL", struct.pack(">II", 10**9, 0))
    gif = b"GIF89a" + struct.pack("<HH", 6000, 6000) + b"\x80\0\0" + bytes(6)
    frame = b"," + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02D\x01\0"
    whole_frame = frame.replace(struct.pack("<HH", 1, 1), b"\xff\xff\xff\xff")
    segment = b"\xff\xe2\xff\xffICC_PROFILE\0\1\1" + bytes(65_519)
    size = jpeg.index(b"\xff\xc0") + 5
    tags = {256: 60_000, 257: 60_000, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 60_000, 279: 10}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 8)
    canvas = b"WEBPVP8X" + struct.pack("<IB3x", 10, 2) + b"\xff\x3f\0" * 2 + whole("WEBP")[12:]
    bmp = struct.pack("<IHHIIiiHHI", 100, 0, 0, 54, 40, 6000, -(2**31), 1, 24, 0) + bytes(84)
    return {
        "PNG, 119 MB of pixels": head + chunk(b"IDAT", zeros(114)) + end[-12:],
        "PNG, interlaced": wide + chunk(b"IDAT", zeros(1)) + end[-12:],
        "PNG, profile": start + chunk(b"iCCP", b"profile\0\0" + zeros(200)) + end,
        "PNG, text": start + chunk(b"zTXt", b"comment\0\0" + zeros(1)) * 300 + end,
        "PNG, texts": start + chunk(b"tEXt", b"a\0b") * 50_000 + end,
        "PNG, frames": start + control + chunk(b"fcTL", bytes(26)) * 10_000 + end,
        "GIF, frames": gif + frame * 5_000 + b";",
        "GIF, large frame": gif + whole_frame + b";",
        "JPEG, segments": jpeg[:2] + segment * 100 + jpeg[2:],
        "JPEG, sides": jpeg[:size] + struct.pack(">HH", 65_000, 65_000) + jpeg[size + 4 :],
        "TIFF, cyclic": tiff,
        "WEBP, canvas": b"RIFF" + struct.pack("<I", len(canvas)) + canvas,
        "BMP, negative": b"BM" + bmp,
    }


def test_images(service: Server, channel: grpc.Channel) -> None:
    hostile = list(bombs().values())

    def send(rng: random.Random) -> None:
        for image in (damaged(whole(rng.choice(FORMATS)), rng), rng.choice(hostile)):
            check_rest(service, "images:segment?classes=dog,sky", "image/png", image)
            request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=image)])
            message = request.SerializeToString()
            check_grpc(
                lambda m=message: call(channel, f"{SERVICE}EmbedImages", m),  # type: ignore[misc]
                REFUSED | {"OK"},
            )

    repeat(send)


@pytest.mark.parametrize("bomb", bombs())
def test_bombs(service: Server, bomb: str) -> None:
    check_rest(service, "images:embed?fit=aspect", "image/png", bombs()[bomb])


PART = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n'
BODIES: Final[tuple[tuple[str, bytes], ...]] = (
    (JSON, b""),
    (JSON, b'{"texts":' * 20_000 + b"1" + b"}" * 20_000),
    (JSON, b'{"texts":["a"],"texts":["b"]}'),
    (JSON, b'{"texts":["\xff\xfe"]}'),
    (JSON, b'{"texts":["\\ud800"]}'),
    (JSON, b'{"image":"aGk=","resolution":1e400}'),
    (JSON, b'{"image":"aGk=","resolution":NaN}'),
    (JSON, b'{"image":"' + b"=" * 100_000 + b'"}'),
    (JSON, b'{"image":"data:image/png;base64,\xc3\xa9"}'),
    (JSON, b'\xef\xbb\xbf{"texts":["a"]}'),
    (JSON, '{"texts":["a"]}'.encode("utf-16")),
    (JSON, b'{"texts":["a"]} trailing'),
    (JSON, json.dumps({"images": [""] * 100_000}).encode()),
    (JSON, json.dumps({"texts": ["\0", "\u202e\u0301" * 100, "{}", "%s%n"]}).encode()),
    (JSON, json.dumps({"image": "aGk=", "classes": [{"prompts": ["b"] * 2000}]}).encode()),
    (FORM, b"--b"),
    (FORM, PART % b"\xff\xfe"),
    (FORM, PART % b"images" * 2000 + b"--b--\r\n"),
    (FORM, PART.replace(b"\r\n\r\n", b'; filename="' + b"f" * 100_000)),
    (FORM, b"--b\r\n" + b"X: y\r\n" * 20_000 + b"\r\nx\r\n--b--\r\n"),
    (FORM.removesuffix("b") + "b" * 5000, PART % b"images"),
    ("multipart/form-data", PART % b"images"),
)


@pytest.mark.parametrize("path", ["images:embed", "texts:embed", "images:segment"])
def test_bodies(service: Server, path: str) -> None:
    for media, body in BODIES:
        check_rest(service, path, media, body)


def a_message(rng: random.Random) -> tuple[str, bytes]:
    """A method's name and a message that it would answer."""
    given = [image_pb2.Image(encoded=whole(rng.choice(FORMATS)))]
    classes = [segment_pb2.SegmentClass(name="dog", prompts=["a dog", "dogs"])]
    messages: dict[str, Any] = {
        "EmbedImages": embed_pb2.EmbedImagesRequest(images=given * 2, resolution=224),
        "EmbedTexts": embed_pb2.EmbedTextsRequest(texts=[f"{rng.random()}", "\U0001f436"]),
        "SegmentImages": segment_pb2.SegmentImagesRequest(images=given, classes=classes),
    }
    method = rng.choice(list(messages))
    return SERVICE + method, messages[method].SerializeToString()


def any_method(rng: random.Random) -> str:
    return SERVICE + rng.choice(METHODS)


def damaged_message(channel: grpc.Channel, rng: random.Random) -> object:
    method, message = a_message(rng)
    return call(channel, method, damaged(message, rng))


def metadata(channel: grpc.Channel, rng: random.Random) -> object:
    """Many pairs, and values that the server reads, which are wrong or right."""
    pairs: list[Any] = [(f"x-{n}", "v" * rng.choice((1, 100))) for n in range(60)]
    pairs += [("x-request-priority", rng.choice(("1", "9", "-1", "one", " ")))]
    pairs += [("x-request-id", "i" * rng.choice((1, 500))), ("traceparent", "00-zz-0-1")]
    pairs += [("x-huge", "v" * rng.choice((1, 20_000, 1_000_000)))]
    return call(channel, f"{SERVICE}ListModels", b"", metadata=pairs)


def many_messages(channel: grpc.Channel, rng: random.Random) -> object:
    stub: Any = channel.stream_unary(any_method(rng))
    return stub(iter([b""] * rng.choice((0, 2, 100))), timeout=LIMIT_S)


def impatient(channel: grpc.Channel, rng: random.Random) -> None:
    """A good message of a caller who does not wait for the answer."""
    method, message = a_message(rng)
    stub: Any = channel.unary_unary(method)
    future = stub.future(message, timeout=LIMIT_S)
    time.sleep(rng.choice((0.0, 0.001, 0.005, 0.02)))
    future.cancel()


ODD_METHODS: Final = ("Nothing", "embedImages", "\u00e9", "a" * 3000, "EmbedImages/", "..")
RPCS: Final[dict[str, tuple[Send, set[str]]]] = {
    "noise": (lambda c, rng: call(c, any_method(rng), rng.randbytes(10_000)), ANSWERED),
    "damaged": (damaged_message, ANSWERED),
    "of another": (lambda c, rng: call(c, any_method(rng), a_message(rng)[1]), ANSWERED),
    "too large": (
        lambda c, rng: call(c, any_method(rng), bytes(33 * MIB)),
        {"RESOURCE_EXHAUSTED"},
    ),
    "unknown": (lambda c, rng: call(c, SERVICE + rng.choice(ODD_METHODS), b""), {"UNIMPLEMENTED"}),
    "metadata": (metadata, REFUSED | {"OK"}),
    "many messages": (many_messages, ANSWERED | {"UNIMPLEMENTED"}),
    "impatient": (impatient, {"OK"}),
}


@pytest.mark.parametrize("kind", RPCS)
def test_rpcs(kind: str, channel: grpc.Channel) -> None:
    send, allowed = RPCS[kind]
    repeat(lambda rng: check_grpc(lambda: send(channel, rng), allowed))


def test_answers_are_as_documented(service: Server, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    # 504: the deadline was a millisecond. 501: the package has no heads for maps. Data of the right
    # form may still be no image, and in a query everything is text.
    config.write_text(
        "[checks.not_a_server_error]\n"
        'expected-statuses = ["2xx", "3xx", "4xx", 501, 504]\n'
        "[checks.positive_data_acceptance]\nenabled = false\n"
        "[checks.negative_data_rejection]\nenabled = false\n",
        encoding="utf-8",
    )
    url = f"{service.rest}/openapi.json"
    options = ("--phases=coverage,fuzzing", "--max-examples=10", "--seed=1", "--no-color")
    ended = run("schemathesis", f"--config-file={config}", "run", url, *options, timeout_s=280)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr
