"""Reads the one message of an RPC ourselves, so that a broken one cannot make the framework speak.

The framework sends the text of what a deserializer raises to the caller.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from service.body_memory import BodyShare
from service.call import Call, deadline_exceeded
from service.errors import InvalidRequest


async def read_message(
    context: Any, deserialize: Callable[[bytes], Message], share: BodyShare, call: Call
) -> Message:
    """The request of a unary RPC.

    Args:
        context: The RPC's own.
        deserialize: From its bytes.
        share: Holds their number from now on.
        call: Whose deadline also bounds how slowly the message may come.

    Raises:
        InvalidRequest: There is no message, or it is malformed.
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
    share.hold(len(raw))
    try:
        return deserialize(raw)
    except DecodeError:
        raise malformed_message() from None


def malformed_message() -> InvalidRequest:
    """What a caller is told whose bytes are no message of the RPC."""
    return InvalidRequest(
        "The message is not one of this RPC's request type.", code="malformed_message"
    )
