"""Hostile RPCs through a bare stub: noise, damage, images, unknown names, metadata, deadlines."""

import random
import time
from functools import partial
from typing import Any, Final

import grpc
import numpy as np

from service.grpc.generated import embed_pb2, encoder_service_pb2, image_pb2, segment_pb2
from tests.hostile.attack import Attack, Broken, Send, attacks
from tests.hostile.images import DAMAGES, Draw, any_whole, draws
from tests.hostile.rest import check_finite

SERVICE: Final = "/tipserve.v1.EncoderService/"
METHODS: Final = ("EmbedImages", "EmbedTexts", "SegmentImages", "GetModel", "ListModels")
OPEN_METHODS: Final = (
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
LEAKS: Final = ("Traceback", "Exception", "Unexpected", "Error:", ".py", "<class")
REFUSED: Final = frozenset({"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"})
ANSWERED: Final = REFUSED | {"OK", "NOT_FOUND"}
UNEXPECTED: Final = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE})
TOO_LARGE: Final = 33 * 1024 * 1024


def call(
    channel: grpc.Channel, method: str, message: bytes, limit_s: float, **options: Any
) -> bytes:
    """The answer to one unary RPC, named by its path or by a method of ours.

    Raises:
        grpc.RpcError: It failed.
    """
    path = method if method.startswith("/") else SERVICE + method
    stub: Any = channel.unary_unary(path)
    answer: bytes = stub(message, timeout=limit_s, **options)
    return answer


def code_of(send: Any, rng: random.Random, limit_s: float) -> str:
    """The code of an RPC that may fail.

    Raises:
        TimeoutError: It met our deadline, which is far beyond its own.
        Broken: Its details reveal internals, or its status is unexpected.
    """
    try:
        send(rng, limit_s)
    except grpc.RpcError as error:
        state: Any = error
        code, details = state.code(), state.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise TimeoutError from error
        if code in UNEXPECTED:
            raise Broken(f"{code.name}: {state.debug_error_string()[:300]}") from None
        if any(leak in details for leak in LEAKS):
            raise Broken(f"{code.name} reveals internals: {details[:200]}") from None
        return str(code.name)
    return "OK"


def image_attacks(channel: grpc.Channel, limit_s: float) -> list[Attack]:
    """Every kind of image to both RPCs for images."""

    def send(draw: Draw, rng: random.Random, limit_s: float) -> None:
        images = [image_pb2.Image(encoded=draw(rng)) for _ in range(rng.choice((1, 1, 2)))]
        if rng.random() < 0.5:
            outputs = [embed_pb2.IMAGE_OUTPUT_CLS1, embed_pb2.IMAGE_OUTPUT_VALUES]
            request = embed_pb2.EmbedImagesRequest(images=images, outputs=outputs)
            answer = call(channel, "EmbedImages", request.SerializeToString(), limit_s)
            for item in embed_pb2.EmbedImagesResponse.FromString(answer).embeddings:
                check_finite(np.frombuffer(item.values.data, "<f4"))
        else:
            classes = [segment_pb2.SegmentClass(name=name) for name in ("dog", "sky")]
            masks = segment_pb2.SegmentImagesRequest(images=images, classes=classes)
            call(channel, "SegmentImages", masks.SerializeToString(), limit_s)

    sends: dict[str, Send] = {
        f"grpc {kind}": partial(code_of, partial(send, draw)) for kind, draw in draws().items()
    }
    return attacks(sends, REFUSED | {"OK"}, limit_s)


ODD_NAMES: Final = ("Nothing", "embedImages", "\u00e9", "a" * 3000, "EmbedImages/", "..")
ODD_SERVICES: Final = (SERVICE, "/", "//", "/tipserve.v2.EncoderService/", "/a/b/c/")


def odd_metadata(rng: random.Random) -> list[Any]:
    """Many pairs, and values that the server reads, which are wrong or right."""
    number = rng.choice((10, 60))
    pairs: list[Any] = [(f"x-{n}", "v" * rng.choice((1, 100))) for n in range(number)]
    pairs += [("x-request-priority", rng.choice(("1", "9", "-1", "one", " ")))]
    pairs += [("x-request-id", "i" * rng.choice((1, 500))), ("traceparent", "00-zz-0-1")]
    pairs += [("x-bin", rng.randbytes(100))]
    return pairs


def rpc_attacks(channel: grpc.Channel, limit_s: float) -> list[Attack]:
    """Messages, names, metadata and numbers of messages outside of the contract."""

    def noise(method: str, rng: random.Random, limit_s: float) -> None:
        call(channel, method, rng.randbytes(rng.choice((1, 10, 1000, 100_000))), limit_s)

    def damaged(rng: random.Random, limit_s: float) -> None:
        method, message = whole_message(rng)
        call(channel, method, rng.choice(list(DAMAGES.values()))(message, rng), limit_s)

    def mixed_up(rng: random.Random, limit_s: float) -> None:
        call(channel, rng.choice(METHODS), whole_message(rng)[1], limit_s)

    def too_large(rng: random.Random, limit_s: float) -> None:
        call(channel, rng.choice(METHODS), bytes(TOO_LARGE), limit_s)

    def unknown(rng: random.Random, limit_s: float) -> None:
        call(channel, rng.choice(ODD_SERVICES) + rng.choice(ODD_NAMES), b"", limit_s)

    def metadata(rng: random.Random, limit_s: float) -> None:
        call(channel, "ListModels", b"", limit_s, metadata=odd_metadata(rng))

    def huge_metadata(rng: random.Random, limit_s: float) -> None:
        pairs = [("x-huge", "v" * rng.choice((10_000, 20_000, 100_000, 1_000_000)))]
        call(channel, "ListModels", b"", limit_s, metadata=pairs)

    def number_of_messages(rng: random.Random, limit_s: float) -> None:
        stub: Any = channel.stream_unary(SERVICE + rng.choice(METHODS))
        stub(iter([b""] * rng.choice((0, 2, 100))), timeout=limit_s)

    def open_service(rng: random.Random, limit_s: float) -> None:
        stub: Any = channel.stream_stream(rng.choice(OPEN_METHODS))
        sent = [rng.randbytes(rng.choice((1, 10, 1000))) for _ in range(3)]
        next(iter(stub(iter(sent), timeout=limit_s)), None)

    kinds: dict[str, tuple[Any, frozenset[str]]] = {
        **{f"noise to {method}": (partial(noise, method), ANSWERED) for method in METHODS},
        "damaged message": (damaged, ANSWERED),
        "another's message": (mixed_up, ANSWERED),
        "message too large": (too_large, frozenset({"RESOURCE_EXHAUSTED"})),
        "unknown method": (unknown, frozenset({"UNIMPLEMENTED"})),
        "metadata": (metadata, REFUSED | {"OK"}),
        "huge metadata": (huge_metadata, frozenset({"RESOURCE_EXHAUSTED", "OK"})),
        "number of messages": (number_of_messages, ANSWERED | {"UNIMPLEMENTED"}),
        "noise to open services": (open_service, ANSWERED),
    }
    return [
        Attack(f"grpc {kind}", partial(code_of, send), allowed, limit_s)
        for kind, (send, allowed) in kinds.items()
    ]


def impatient_attacks(channel: grpc.Channel, limit_s: float) -> list[Attack]:
    """Good messages of callers who do not wait for the answer."""

    def deadline(rng: random.Random, _: float) -> str:
        method, message = whole_message(rng)
        try:
            call(channel, method, message, rng.choice((0.0001, 0.001, 0.005, 0.02)))
        except grpc.RpcError as error:
            state: Any = error
            return str(state.code().name)
        return "OK"

    def cancel(rng: random.Random, limit_s: float) -> str:
        method, message = whole_message(rng)
        stub: Any = channel.unary_unary(SERVICE + method)
        future = stub.future(message, timeout=limit_s)
        time.sleep(rng.choice((0.0, 0.001, 0.005, 0.02)))
        future.cancel()
        return str(future.code().name)

    return [
        Attack("grpc tiny deadline", deadline, ANSWERED | {"DEADLINE_EXCEEDED"}, limit_s),
        Attack("grpc cancelled", cancel, ANSWERED | {"CANCELLED"}, limit_s),
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
