"""Reads the one message of an RPC ourselves, so that a broken one cannot make the framework speak.

The framework sends the text of what a deserializer raises to the caller.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from service.call import Call, deadline_exceeded
from service.errors import InvalidRequest
from service.grpc.value_count import check_value_count
from service.safety.body_memory import BodyShare


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
            message_type=handler.request_deserializer.__self__.DESCRIPTOR,
            parse=handler.request_deserializer,
            behavior=handler.unary_unary or handler.stream_stream,
            write=handler.response_serializer,
            max_values=max_values,
        )


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
