"""Reads request messages: few at once, counts their values before parsing, refuses malformed ones.

gRPC would send the text of a deserializer's exception to the caller, so messages arrive as bytes
and are parsed here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Final, Literal, NamedTuple
from weakref import WeakValueDictionary

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from model.protobuf_wire import BYTES, read_fields
from service.admission import Ticket
from service.errors import DeadlineExceeded, InvalidRequest, RequestTooLarge
from service.messages import MAX_CLASSES, MAX_IMAGES, MAX_TEXTS

# Longest time in which a message arrives.
RECEIVE_LIMIT_S: Final = 20.0
# A smaller message takes a few megabytes at the most once parsed, and is not counted.
SMALL_BYTES: Final = 128 * 1024
# Most values in one message. An item is two or three; requests slightly over are left to later
# checks.
MAX_VALUES: Final = 10 * (MAX_IMAGES + MAX_TEXTS + MAX_CLASSES) + 1000
# What a length-delimited field holds, by its number: messages of a type, or packed numbers. Strings
# and unknown fields are left out.
PACKED: Final = "packed"
Contents = Mapping[int, Descriptor | Literal["packed"]]


class Rpc(NamedTuple):
    """One RPC of ours: `package.Service/Method`, the type of its requests, and what answers one."""

    name: str
    request_type: Any
    behavior: Callable[[Message, Any], Awaitable[Message]]


class MessageReader:
    """Reads few messages at once, since grpcio takes all of a message that is being read.

    A host has half of the slots, so slow messages of one host delay no other. Belongs to one event
    loop.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_of_host = max(1, num_slots // 2)
        self._slots = asyncio.Semaphore(num_slots)
        # By host, while its messages hold or want a slot.
        self._of_host: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def read(self, context: Any, host: str) -> Any:
        """The next message as bytes, or `grpc.aio.EOF`.

        Raises:
            DeadlineExceeded: It did not arrive in time.
        """
        of_host = self._of_host.setdefault(host, asyncio.Semaphore(self._num_of_host))
        try:
            async with of_host, self._slots, asyncio.timeout(RECEIVE_LIMIT_S):
                return await context.read()
        except TimeoutError:
            text = "The message did not arrive in time."
            raise DeadlineExceeded(text, code="slow_message") from None


def parse_message(raw: bytes, rpc: Rpc, ticket: Ticket) -> Message:
    """Parse a request, whose bytes its ticket holds.

    Raises:
        InvalidRequest: It is malformed.
        RequestTooLarge: It has too many values.
        Overloaded: There is no memory for it.
    """
    ticket.hold_body(len(raw))
    if len(raw) > SMALL_BYTES:
        check_value_count(raw, rpc.request_type.DESCRIPTOR)
    try:
        message: Message = rpc.request_type.FromString(raw)
        return message
    except DecodeError:
        raise InvalidRequest(
            "The message does not have this RPC's request type.", code="malformed_message"
        ) from None


def check_value_count(raw: bytes, message_type: Descriptor, limit: int = MAX_VALUES) -> None:
    """Refuse a message with more values than a valid request can have, before it is parsed.

    An empty image or prompt takes two bytes on the wire and thirty or more as an object: 32 MiB of
    them would take most of a gigabyte, and a second of the event loop, before any later check.

    Args:
        raw: The message. A malformed one passes; the parser refuses it afterwards.
        message_type: Its type, which says which fields are messages with values of their own.
        limit: Most values at all depths together.

    Raises:
        RequestTooLarge: There are more values.
    """
    count, unread = 0, [(slice(0, len(raw)), message_type)]
    while unread:
        span, described = unread.pop()
        contents = _contents(described)
        with suppress(ValueError):  # malformed from here on
            fields = read_fields(raw, span.start, span.stop, allow_groups=True)
            for number, wire_type, value in fields:
                count += 1
                inside = contents.get(number) if wire_type == BYTES else None
                if isinstance(value, slice) and inside == PACKED:
                    count += value.stop - value.start  # each number takes a byte or more
                elif isinstance(value, slice) and isinstance(inside, Descriptor):
                    unread.append((value, inside))
                if count > limit:
                    text = f"The message has more than {limit} values; split it."
                    raise RequestTooLarge(text, code="too_many_items")


@cache
def _contents(message_type: Descriptor) -> Contents:
    return {
        field.number: field.message_type or PACKED
        for field in message_type.fields
        if field.cpp_type != FieldDescriptor.CPPTYPE_STRING
    }
