"""Reads request messages: counts their values before parsing, and refuses malformed ones.

gRPC would send the text of a deserializer's exception to the caller, so messages arrive as bytes
and are parsed here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, Self

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from model.protobuf_wire import BYTES, read_fields
from service.call import Call, deadline_exceeded
from service.errors import InvalidRequest, RequestTooLarge
from service.grpc.errors import CODE, error_metadata
from service.grpc.generated import open_inference_pb2
from service.safety.protection import BodyShare

# A smaller message takes a few megabytes at the most once parsed, and is not counted.
SMALL_BYTES: Final = 128 * 1024
# What a length-delimited field holds, by its number: messages of a type, or packed numbers. Strings
# and unknown fields are left out.
PACKED: Final = "packed"
Contents = Mapping[int, Descriptor | Literal["packed"]]
MALFORMED: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """One RPC of ours, from bytes to bytes; in a stream, one of its requests.

    Attributes:
        name: `package.Service/Method`.
        message_type: Type of its request.
        parse: Parses the request.
        behavior: Answers the request.
        write: Serializes the answer.
        max_values: Most values in one request.
    """

    name: str
    message_type: Descriptor
    parse: Callable[[bytes], Message]
    behavior: Callable[[Message, Any], Awaitable[Message]]
    write: Callable[[Message], bytes]
    max_values: int

    @classmethod
    def of(cls, method: str, handler: Any, max_values: int) -> Self:
        """From `/package.Service/Method` and the handler that the generated code made."""
        return cls(
            name=method.removeprefix("/"),
            message_type=_request_type(method.removeprefix("/")),
            parse=handler.request_deserializer,
            behavior=handler.unary_unary or handler.stream_stream,
            write=handler.response_serializer,
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


async def read_message(context: Any, rpc: Rpc, share: BodyShare, call: Call) -> Message:
    """Receive and parse the request of a unary RPC.

    Args:
        context: Context of the RPC.
        rpc: The RPC.
        share: Counts the bytes of the request.
        call: Its deadline also limits how slowly the message may arrive.

    Raises:
        InvalidRequest: There is no message, or it is malformed.
        RequestTooLarge: It has too many values.
        Overloaded: There is no memory for it.
        DeadlineExceeded: It did not arrive in time.
    """
    try:
        async with asyncio.timeout(call.remaining_s()):
            raw = await context.read()
    except TimeoutError:
        raise deadline_exceeded() from None
    if raw is grpc.aio.EOF:
        raise InvalidRequest("The RPC has no message.", code="missing_message")
    return parse_message(raw, rpc, share)


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


def with_checked_messages(handler: Any) -> Any:
    """A handler of health or reflection that refuses malformed messages.

    Without it gRPC sends the text of the deserializer's exception and logs a traceback.
    """

    def deserialize(raw: bytes) -> Any:
        try:
            return handler.request_deserializer(raw)
        except DecodeError:
            return MALFORMED

    serializers = {
        "request_deserializer": deserialize,
        "response_serializer": handler.response_serializer,
    }

    async def answer_one(message: Any, context: Any) -> Any:
        await _check(message, context)
        # A method that answers with a stream writes to the context itself.
        return await (handler.unary_unary or handler.unary_stream)(message, context)

    async def answer_all(messages: Any, context: Any) -> AsyncIterator[Any]:
        async for answer in handler.stream_stream(_checked(messages, context), context):
            yield answer

    if handler.stream_stream is not None:
        return grpc.stream_stream_rpc_method_handler(answer_all, **serializers)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(answer_one, **serializers)
    return grpc.unary_unary_rpc_method_handler(answer_one, **serializers)


async def _checked(messages: Any, context: Any) -> AsyncIterator[Any]:
    async for message in messages:
        await _check(message, context)
        yield message


async def _check(message: Any, context: Any) -> None:
    if message is MALFORMED:
        error = malformed_message()
        metadata = error_metadata(error)
        await context.abort(CODE[error.kind], error.message, trailing_metadata=metadata)
