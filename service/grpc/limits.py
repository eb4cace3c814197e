"""Reads request messages: counts their values before parsing, and refuses malformed ones.

gRPC would send the text of a deserializer's exception to the caller, so messages arrive as bytes
and are parsed here.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, Self

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from model.protobuf_wire import BYTES, read_fields
from service.call import Call, deadline_exceeded
from service.errors import (
    InvalidRequest,
    NotSupported,
    Overloaded,
    RequestTooLarge,
    ServiceError,
)
from service.grpc.callers import caller_of
from service.grpc.errors import CODE, error_metadata
from service.grpc.generated import open_inference_pb2
from service.grpc.receiving import ReceivePlaces
from service.grpc.writing import Enclosed
from service.safety.protection import BodyShare
from service.safety.proxies import TrustedProxies

# A smaller message takes a few megabytes at the most once parsed, and is not counted.
SMALL_BYTES: Final = 128 * 1024
# What a length-delimited field holds, by its number: messages of a type, or packed numbers. Strings
# and unknown fields are left out.
PACKED: Final = "packed"
# Counts an RPC of health or reflection while it is open; see `open_rpc`.
OpenRpc = Callable[[Any], AbstractAsyncContextManager[Any]]
Contents = Mapping[int, Descriptor | Literal["packed"]]
# Messages of health and reflection hold one name. They need no key: 64 of 33 MB, 32 kB each when
# compressed, took 1 GiB.
MAX_OPEN_MESSAGE_BYTES: Final = 4096
# Lifetime of a health check, which answers at once.
MAX_OPEN_UNARY_S: Final = 5.0
# Open RPCs of health and reflection on one connection; a client needs one or two.
MAX_OPEN_RPCS_PER_CONNECTION: Final = 16
RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """One RPC of ours, from bytes to bytes; in a stream, one of its requests.

    Attributes:
        name: `package.Service/Method`.
        message_type: Type of its request.
        parse: Parses the request.
        behavior: Answers the request.
        max_values: Most values in one request.
    """

    name: str
    message_type: Descriptor
    parse: Callable[[bytes], Message]
    behavior: Callable[[Message, Any], Awaitable[Message | Enclosed]]
    max_values: int

    @classmethod
    def of(cls, method: str, handler: Any, max_values: int) -> Self:
        """From `/package.Service/Method` and the handler that the generated code made."""
        return cls(
            name=method.removeprefix("/"),
            message_type=_request_type(method.removeprefix("/")),
            parse=handler.request_deserializer,
            behavior=handler.unary_unary or handler.stream_stream,
            max_values=max_values,
        )


@cache
def _request_type(name: str) -> Descriptor:
    """Request type of `package.Service/Method`; each dialect has its own descriptor pool."""
    service, _, rpc = name.rpartition("/")
    for pool in (descriptor_pool.Default(), open_inference_pb2.DESCRIPTOR.pool):
        with suppress(KeyError):
            found: Descriptor = pool.FindServiceByName(service).FindMethodByName(rpc).input_type
            return found
    raise LookupError(f"no contract has {name}")


async def read_message(
    receive: Callable[[], Awaitable[Any]], rpc: Rpc, share: BodyShare, call: Call
) -> Message:
    """Receive and parse the request of a unary RPC.

    Args:
        receive: Receives the message as bytes, or `grpc.aio.EOF`.
        rpc: The RPC.
        share: Counts the bytes of the request.
        call: Its deadline also limits how slowly the message may arrive.

    Raises:
        InvalidRequest: There is no message, or it is malformed.
        RequestTooLarge: It has too many values.
        Overloaded: There is no memory for it, or it was too slow while others waited.
        DeadlineExceeded: It did not arrive before the deadline.
    """
    try:
        async with asyncio.timeout(call.remaining_s()):
            raw = await receive()
    except TimeoutError:
        raise deadline_exceeded() from None
    if raw is grpc.aio.EOF:
        raise _missing_message()
    return parse_message(raw, rpc, share)


def _missing_message() -> InvalidRequest:
    return InvalidRequest("The RPC has no message.", code="missing_message")


def parse_message(raw: bytes, rpc: Rpc, share: BodyShare) -> Message:
    """Parse a request.

    Raises:
        InvalidRequest: It is malformed.
        RequestTooLarge: It has too many values.
        Overloaded: There is no memory for it.
    """
    share.hold(len(raw))
    check_value_count(raw, rpc.message_type, rpc.max_values)
    try:
        return rpc.parse(raw)
    except DecodeError:
        raise malformed_message() from None


def malformed_message() -> InvalidRequest:
    """The error for bytes that are no message of the RPC."""
    return InvalidRequest(
        "The message does not have this RPC's request type.", code="malformed_message"
    )


def check_value_count(
    raw: bytes, message_type: Descriptor, limit: int, *, small_bytes: int = SMALL_BYTES
) -> None:
    """Refuse a message with more values than a valid request can have, before it is parsed.

    An empty image or prompt takes two bytes on the wire and thirty or more as an object: 32 MiB of
    them would take most of a gigabyte, and a second of the event loop, before any later check.

    Args:
        raw: The message. A malformed one passes; the parser refuses it afterwards.
        message_type: Its type, which says which fields are messages with values of their own.
        limit: Most values at all depths together.
        small_bytes: Messages of at most this size are not counted.

    Raises:
        RequestTooLarge: There are more values.
    """
    if len(raw) > small_bytes and _count_values(raw, message_type, limit) > limit:
        raise RequestTooLarge(
            f"The message has more than {limit} values; split it.", code="too_many_items"
        )


def _count_values(raw: bytes, message_type: Descriptor, limit: int) -> int:
    """The number of values; counting stops soon after the limit."""
    count = 0
    unread = [(slice(0, len(raw)), message_type)]
    while unread and count <= limit:
        span, described = unread.pop()
        contents = _contents(described)
        fields = read_fields(raw, span.start, span.stop, allow_groups=True)
        with suppress(ValueError):  # malformed from here on
            for number, wire_type, value in fields:
                count += 1
                if count > limit:
                    break
                inside = contents.get(number) if wire_type == BYTES else None
                if inside is None or not isinstance(value, slice):
                    continue
                if inside == PACKED:
                    count += value.stop - value.start  # each number takes a byte or more
                else:
                    unread.append((value, inside))
    return count


@cache
def _contents(message_type: Descriptor) -> Contents:
    return {
        field.number: field.message_type or PACKED
        for field in message_type.fields
        if field.cpp_type != FieldDescriptor.CPPTYPE_STRING
    }


def serving_small_messages(handler: Any, places: ReceivePlaces, open_rpc: OpenRpc) -> Any:
    """A handler of health or reflection that reads its messages itself, as bytes.

    It refuses large messages, and malformed ones: gRPC would send the text of the deserializer's
    exception and log a traceback.

    Args:
        handler: The handler that the generated code made.
        places: Places for the messages of these services.
        open_rpc: `open_rpc` of this module with its first arguments.
    """

    async def read(context: Any) -> Any:
        raw = await places.read(context)
        if raw is grpc.aio.EOF:
            return raw
        num_bytes = len(raw)
        if num_bytes > MAX_OPEN_MESSAGE_BYTES:
            # gRPC's context keeps the exception of an aborted RPC, and with it this frame: 64
            # messages of 33 MB would fill a pod of 2 GiB.
            del raw
            raise RequestTooLarge(
                f"The message has {num_bytes} bytes, at most {MAX_OPEN_MESSAGE_BYTES} are allowed."
            )
        try:
            return handler.request_deserializer(raw)
        except DecodeError:
            raise malformed_message() from None

    async def read_all(context: Any) -> AsyncIterator[Any]:
        while (message := await read(context)) is not grpc.aio.EOF:
            yield message

    async def read_one(context: Any) -> Any:
        message = await read(context)
        if message is grpc.aio.EOF:
            raise _missing_message()
        return message

    async def answer_one(messages: Any, context: Any) -> Any:
        async with open_rpc(context) as caller:
            async with asyncio.timeout(MAX_OPEN_UNARY_S):
                return await handler.unary_unary(await read_one(caller), caller)

    async def answer_by_stream(messages: Any, context: Any) -> None:
        async with open_rpc(context) as caller:
            # It writes to the context itself.
            await handler.unary_stream(await read_one(caller), caller)

    async def answer_all(messages: Any, context: Any) -> None:
        async with open_rpc(context) as caller:
            async for answer in handler.stream_stream(read_all(caller), caller):
                await context.write(answer)

    serializer = {"response_serializer": handler.response_serializer}
    if handler.unary_unary is not None:
        return grpc.stream_unary_rpc_method_handler(answer_one, **serializer)
    answer = answer_by_stream if handler.unary_stream is not None else answer_all
    return grpc.stream_stream_rpc_method_handler(answer, **serializer)


@asynccontextmanager
async def open_rpc(
    connections: Counter[str], proxies: TrustedProxies, context: Any
) -> AsyncIterator[Any]:
    """Count an RPC of health or reflection on its connection, and send errors of ours.

    Args:
        connections: Number of RPCs of these services by connection.
        proxies: Whose word on the callers' addresses is taken.
        context: Context of the RPC.

    Yields:
        The context with the caller as its peer.
    """
    context, _ = caller_of(context, proxies)
    connection = context.peer()
    connections[connection] += 1
    error: ServiceError
    try:
        if connections[connection] > MAX_OPEN_RPCS_PER_CONNECTION:
            raise Overloaded(
                f"More than {MAX_OPEN_RPCS_PER_CONNECTION} RPCs of health and reflection are open "
                "on this connection.",
                code="too_many_rpcs",
                retry_after_s=RETRY_S,
            )
        yield context
        return
    except TimeoutError:
        error = deadline_exceeded()
    except ServiceError as raised:
        error = raised
    except NotImplementedError:  # such as Health/List, which newer contracts have
        error = NotSupported("This RPC is not supported.", code="unknown_rpc")
    finally:
        connections[connection] -= 1
        if not connections[connection]:
            del connections[connection]
    metadata = error_metadata(error)
    await context.abort(CODE[error.kind], error.message, trailing_metadata=metadata)
