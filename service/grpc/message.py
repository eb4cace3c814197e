"""Reads the one message of an RPC ourselves, so that a broken one cannot make the framework speak.

The framework sends the text of what a deserializer raises to the caller.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from service.call import Call, deadline_exceeded
from service.errors import InvalidRequest
from service.grpc.generated import open_inference_pb2
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
