"""Values are counted at every depth before a message is parsed; the parser has the last word."""

import asyncio
from typing import Any

import hypothesis.strategies as st
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from hypothesis import given

from service.errors import RequestTooLarge
from service.grpc.generated import embed_pb2, image_pb2, segment_pb2, text_pb2
from service.grpc.limits import MessageReader, check_value_count

IMAGES, SEGMENT = embed_pb2.EmbedImagesRequest, segment_pb2.SegmentImagesRequest


def type_of(message: Any) -> Descriptor:
    found: Descriptor = message.DESCRIPTOR
    return found


NESTED = SEGMENT(
    classes=[segment_pb2.SegmentClass(name="a", prompts=["x"] * 7)],
    templates=text_pb2.Templates(custom=text_pb2.CustomTemplates(templates=["{}"] * 3)),
)


@pytest.mark.parametrize(
    ("request_", "count"),
    [
        (IMAGES(images=[image_pb2.Image()] * 3, normalize=True, model="m"), 5),
        (IMAGES(outputs=["IMAGE_OUTPUT_CLS1"] * 3), 4),
        (NESTED, 1 + 1 + 7 + 1 + 1 + 3),
    ],
)
def test_every_value_counts_once(request_: Any, count: int) -> None:
    raw = request_.SerializeToString()
    check_value_count(raw, type_of(request_), count)
    with pytest.raises(RequestTooLarge, match=f"more than {count - 1} values"):
        check_value_count(raw, type_of(request_), count - 1)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x12\x00" * 1000,  # images
        b"\x1a\xd0\x0f" + b"\x12\x00" * 1000,  # prompts of one class, for another type
        b"\xf8\x01\x00" * 1000,  # a field that is not known
        b"\xfb\x01" * 500 + b"\x12\x00" * 500,  # behind groups that do not end
        b"\x1a\xe8\x07" + b"\x01" * 1000,  # packed numbers
        b"\x12\x00" * 1000 + b"\x12\x05",  # before a value that is cut off
    ],
)
@pytest.mark.parametrize("kind", [IMAGES, SEGMENT])
def test_many_small_values_are_too_many(raw: bytes, kind: Any) -> None:
    with pytest.raises(RequestTooLarge):
        check_value_count(raw, type_of(kind), 100)


@given(st.binary(max_size=64))
def test_random_bytes_are_counted_as_the_parser_counts_them(raw: bytes) -> None:
    check_value_count(raw, type_of(SEGMENT), 10_000)
    try:
        parsed = SEGMENT.FromString(raw)
    except DecodeError:
        return
    num_items = len(parsed.images) + len(parsed.classes) + len(parsed.background_classes)
    if num_items:
        with pytest.raises(RequestTooLarge):
            check_value_count(raw, type_of(SEGMENT), num_items - 1)


class SlowContext:
    """An RPC whose message arrives when a test says so."""

    def __init__(self) -> None:
        self.is_read = False
        self.arrived = asyncio.Event()

    async def read(self) -> bytes:
        self.is_read = True
        await self.arrived.wait()
        return b"message"


async def test_slow_messages_of_one_host_delay_no_other_host() -> None:
    reader = MessageReader(4)
    slow = [SlowContext() for _ in range(9)]
    tasks = [asyncio.ensure_future(reader.read(one, "slow")) for one in slow]
    honest = SlowContext()
    honest.arrived.set()
    assert await asyncio.wait_for(reader.read(honest, "honest"), 5) == b"message"
    assert sum(one.is_read for one in slow) == 2
    for one in slow:
        one.arrived.set()
    assert await asyncio.gather(*tasks) == [b"message"] * 9
    assert not reader._of_host
