"""Limits on RPCs and messages, checked before a message is parsed."""

import asyncio
import time
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
from service.call import Call, Clock, deadline_exceeded
from service.errors import InvalidRequest, RequestTooLarge
from service.grpc.errors import CODE, error_metadata
from service.grpc.generated import open_inference_pb2
from service.safety.protection import BodyShare

# Counts the values of a message before it is parsed.
#
# An empty image or prompt takes two bytes on the wire and thirty or more as an object, so 32 MiB of
# them would become most of a gigabyte, and take a second of the event loop, before any check of
# ours.

# A message this small becomes a few megabytes at the worst, and is not worth the counting.
SMALL_BYTES: Final = 128 * 1024
# What a length-delimited field holds by its number: messages of a type, or packed numbers. Strings
# and what is not known are not there.
PACKED: Final = "packed"
Contents = Mapping[int, Descriptor | Literal["packed"]]


def check_value_count(
    raw: bytes, message_type: Descriptor, limit: int, *, small_bytes: int = SMALL_BYTES
) -> None:
    """Refuse a message with more values than a good one can have; what is malformed passes.

    Args:
        raw: As it came. It need not be well-formed: the parser says so afterwards.
        message_type: Which of its fields are messages again, and are counted into.
        limit: Values of all depths together.
        small_bytes: A message of at most so many bytes passes uncounted.

    Raises:
        RequestTooLarge: There are more.

    Source: protobuf's wire format, https://protobuf.dev/programming-guides/encoding/
    """
    if len(raw) > small_bytes and _count(raw, message_type, limit) > limit:
        raise RequestTooLarge(
            f"The message has more than {limit} values; split it.", code="too_many_items"
        )


def _count(raw: bytes, message_type: Descriptor, limit: int) -> int:
    """The number of values; it may stop as soon as they are more than the limit."""
    count = 0
    waiting = [(0, len(raw), message_type)]
    while waiting and count <= limit:
        start, end, described = waiting.pop()
        contents = _contents(described)
        # A malformed message ends here; what was read before it still counts, as the parser
        # allocates it before it finds the error.
        with suppress(ValueError):
            for number, wire_type, value in read_fields(raw, start, end, allow_groups=True):
                count += 1
                if count > limit:
                    break
                inside = contents.get(number)
                if wire_type != BYTES or inside is None or not isinstance(value, slice):
                    continue
                if inside == PACKED:
                    count += value.stop - value.start  # each has a byte or more
                else:
                    waiting.append((value.start, value.stop, inside))
    return count


@cache
def _contents(message_type: Descriptor) -> Contents:
    return {
        field.number: field.message_type or PACKED
        for field in message_type.fields
        if field.cpp_type != FieldDescriptor.CPPTYPE_STRING
    }


# Reads the one message of an RPC ourselves, so that a broken one cannot make the framework speak.
#
# The framework sends the text of what a deserializer raises to the caller.


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """One RPC of ours, from bytes to bytes; of a stream, one of its requests.

    Attributes:
        name: `package.Service/Method`.
        message_type: Of its request.
        parse: Reads the request.
        behavior: Answers it.
        write: Writes the answer.
        max_values: Of one request.
    """

    name: str
    message_type: Descriptor
    parse: Callable[[bytes], Message]
    behavior: Callable[[Message, Any], Awaitable[Message]]
    write: Callable[[Message], bytes]
    max_values: int

    @classmethod
    def of(cls, method: str, handler: Any, max_values: int) -> Self:
        """From a handler of the generated code; `/package.Service/Method`."""
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
    """Of the request of `package.Service/Method`; each dialect has a pool of its own."""
    service, _, rpc = name.rpartition("/")
    for pool in (descriptor_pool.Default(), open_inference_pb2.DESCRIPTOR.pool):
        with suppress(KeyError):
            found: Descriptor = pool.FindServiceByName(service).FindMethodByName(rpc).input_type
            return found
    raise LookupError(f"no contract has {name}")


async def read_message(context: Any, rpc: Rpc, share: BodyShare, call: Call) -> Message:
    """The request of a unary RPC.

    Args:
        context: The RPC's own.
        rpc: Which one it is.
        share: Holds their number from now on.
        call: Whose deadline also bounds how slowly the message may come.

    Raises:
        InvalidRequest: There is no message, or it is malformed.
        RequestTooLarge: It has too many values.
        Overloaded: There is no memory for it.
        DeadlineExceeded: It did not come in time.
    """
    try:
        async with asyncio.timeout(call.remaining_s()):
            raw = await context.read()
    except TimeoutError:
        raise deadline_exceeded() from None
    if raw is grpc.aio.EOF:
        raise InvalidRequest("The RPC came without a message.", code="missing_message")
    return parse_message(raw, rpc, share)


def parse_message(raw: bytes, rpc: Rpc, share: BodyShare) -> Message:
    """A request from its bytes.

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
    """What a caller is told whose bytes are no message of the RPC."""
    return InvalidRequest(
        "The message is not one of this RPC's request type.", code="malformed_message"
    )


# Holds RPCs while the server closes around them: those that come, and others' answers.

POLL_S: Final = 0.01


class Gate:
    """Open, but for a moment in the life of a server. Belongs to the server's event loop."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._released = asyncio.Event()
        self._released.set()
        self._last_arrival = 0.0
        # Set once the server begins to close: streams end where they are.
        self.leaving = asyncio.Event()

    async def come_in(self) -> None:
        """An RPC has arrived; returns once it may go on."""
        self._last_arrival = self._clock()
        await self.pass_by()

    async def pass_by(self) -> None:
        """Return once answers may be given."""
        if not self._released.is_set():
            await self._released.wait()

    async def hold(self, quiet_s: float, limit_s: float) -> None:
        """Hold everybody, and return when nobody has come for so long: all wait for an answer."""
        self._released.clear()
        self.leaving.set()
        began = now = self._clock()
        while now - max(began, self._last_arrival) < quiet_s and now - began < limit_s:
            await asyncio.sleep(POLL_S)
            now = self._clock()

    def release(self) -> None:
        """Let everybody go on."""
        self._released.set()


# Health and reflection are not our code, but a malformed message is the caller's error there too.
#
# The framework would send the text of what the deserializer raises, and log a traceback for it.

MALFORMED: Final = object()


def with_checked_messages(handler: Any) -> Any:
    """A handler of one of the open services that refuses what is no message of its RPC."""

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
        # The method itself writes where it answers with a stream.
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
        error: InvalidRequest = malformed_message()
        metadata = error_metadata(error)
        await context.abort(CODE[error.kind], error.message, trailing_metadata=metadata)
