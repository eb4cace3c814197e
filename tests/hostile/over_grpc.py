"""Hostile RPCs through a bare channel: noise, damage, unknown names, metadata, deadlines."""

import random
import time
from collections.abc import Callable
from typing import Any, Final

import grpc

from service.grpc.generated import embed_pb2, image_pb2, segment_pb2
from tests.hostile.images import DAMAGES, any_whole

Send = Callable[[grpc.Channel, random.Random, float], object]

SERVICE: Final = "/tipserve.v1.EncoderService/"
METHODS: Final = ("EmbedImages", "EmbedTexts", "SegmentImages", "GetModel", "ListModels")
ODD_NAMES: Final = ("Nothing", "embedImages", "\u00e9", "a" * 3000, "EmbedImages/", "..")
ODD_SERVICES: Final = (SERVICE, "/", "//", "/tipserve.v2.EncoderService/", "/a/b/c/")
TOO_LARGE: Final = 33 * 1024 * 1024
REFUSED: Final = frozenset({"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"})
ANSWERED: Final = REFUSED | {"OK", "NOT_FOUND"}


def call(channel: grpc.Channel, path: str, message: bytes, limit_s: float, **options: Any) -> bytes:
    """The answer to one unary RPC.

    Raises:
        grpc.RpcError: It failed.
    """
    stub: Any = channel.unary_unary(path)
    answer: bytes = stub(message, timeout=limit_s, **options)
    return answer


def images(channel: grpc.Channel, image: bytes, rng: random.Random, limit_s: float) -> None:
    """An image to either RPC for images."""
    given = [image_pb2.Image(encoded=image)] * rng.choice((1, 2))
    if rng.random() < 0.5:
        embed = embed_pb2.EmbedImagesRequest(images=given)
        call(channel, f"{SERVICE}EmbedImages", embed.SerializeToString(), limit_s)
    else:
        classes = [segment_pb2.SegmentClass(name=name) for name in ("dog", "sky")]
        masks = segment_pb2.SegmentImagesRequest(images=given, classes=classes)
        call(channel, f"{SERVICE}SegmentImages", masks.SerializeToString(), limit_s)


def noise(channel: grpc.Channel, rng: random.Random, limit_s: float) -> None:
    message = rng.randbytes(rng.choice((1, 10, 1000, 100_000)))
    call(channel, SERVICE + rng.choice(METHODS), message, limit_s)


def damaged(channel: grpc.Channel, rng: random.Random, limit_s: float) -> None:
    method, message = whole_message(rng)
    damage = rng.choice(list(DAMAGES.values()))
    call(channel, SERVICE + method, damage(message, rng), limit_s)


def mixed_up(channel: grpc.Channel, rng: random.Random, limit_s: float) -> None:
    call(channel, SERVICE + rng.choice(METHODS), whole_message(rng)[1], limit_s)


def too_large(channel: grpc.Channel, rng: random.Random, limit_s: float) -> None:
    call(channel, SERVICE + rng.choice(METHODS), bytes(TOO_LARGE), limit_s)


def unknown(channel: grpc.Channel, rng: random.Random, limit_s: float) -> None:
    call(channel, rng.choice(ODD_SERVICES) + rng.choice(ODD_NAMES), b"", limit_s)


def metadata(channel: grpc.Channel, rng: random.Random, limit_s: float) -> None:
    """Many pairs, and values that the server reads, which are wrong or right."""
    pairs: list[Any] = [(f"x-{n}", "v" * rng.choice((1, 100))) for n in range(60)]
    pairs += [("x-request-priority", rng.choice(("1", "9", "-1", "one", " ")))]
    pairs += [("x-request-id", "i" * rng.choice((1, 500))), ("traceparent", "00-zz-0-1")]
    pairs += [("x-huge", "v" * rng.choice((1, 20_000, 1_000_000)))]
    call(channel, f"{SERVICE}ListModels", b"", limit_s, metadata=pairs)


def many_messages(channel: grpc.Channel, rng: random.Random, limit_s: float) -> None:
    stub: Any = channel.stream_unary(SERVICE + rng.choice(METHODS))
    stub(iter([b""] * rng.choice((0, 2, 100))), timeout=limit_s)


def impatient(channel: grpc.Channel, rng: random.Random, limit_s: float) -> None:
    """A good message of a caller who does not wait for the answer."""
    method, message = whole_message(rng)
    stub: Any = channel.unary_unary(SERVICE + method)
    future = stub.future(message, timeout=limit_s)
    time.sleep(rng.choice((0.0, 0.001, 0.005, 0.02)))
    future.cancel()


# With the right codes of each.
SENDS: Final[tuple[tuple[Send, frozenset[str]], ...]] = (
    (noise, ANSWERED),
    (damaged, ANSWERED),
    (mixed_up, ANSWERED),
    (too_large, frozenset({"RESOURCE_EXHAUSTED"})),
    (unknown, frozenset({"UNIMPLEMENTED"})),
    (metadata, REFUSED | {"OK"}),
    (many_messages, ANSWERED | {"UNIMPLEMENTED"}),
    (impatient, frozenset({"OK"})),
)


def whole_message(rng: random.Random) -> tuple[str, bytes]:
    """A method's name and a message that it would answer."""
    given = [image_pb2.Image(encoded=any_whole(rng))]
    classes = [segment_pb2.SegmentClass(name="dog", prompts=["a dog", "dogs"])]
    texts = [f"text {rng.randrange(10**6)}", "\u00e9t\u00e9 \U0001f436"]
    messages: dict[str, Any] = {
        "EmbedImages": embed_pb2.EmbedImagesRequest(images=given * 2, resolution=224),
        "EmbedTexts": embed_pb2.EmbedTextsRequest(texts=texts),
        "SegmentImages": segment_pb2.SegmentImagesRequest(images=given, classes=classes),
    }
    method = rng.choice(list(messages))
    return method, messages[method].SerializeToString()
