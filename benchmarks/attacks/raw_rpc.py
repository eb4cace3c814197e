"""Bytes of any kind to every RPC through a bare stub: noise, damage, unknown names, metadata."""

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import grpc

from benchmarks.attacks.attack import Attack, Broken
from benchmarks.attacks.images import DAMAGES, any_whole
from service.grpc.generated import embed_pb2, encoder_service_pb2, image_pb2, segment_pb2

SERVICE: Final = "/tipserve.v1.EncoderService/"
METHODS: Final = ("EmbedImages", "EmbedTexts", "SegmentImages", "GetModel", "ListModels")
OPEN_METHODS: Final = (
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
LEAKS: Final = ("Traceback", "Exception", "Unexpected", "Error:", ".py", "<class")
REFUSED: Final = frozenset({"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"})
ANSWERED: Final = REFUSED | {"OK", "NOT_FOUND"}
UNASKED: Final = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE})
TOO_LARGE: Final = 33 * 1024 * 1024

Send = Callable[[random.Random], str]


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
        Broken: Its details tell of the program, or it was given up by nobody.
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
            raise Broken(f"{state.code().name}, which nobody asked for: {how[:300]}") from None
        if any(leak in details for leak in LEAKS):
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
        "grpc metadata": (metadata, REFUSED | {"OK"}),
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
