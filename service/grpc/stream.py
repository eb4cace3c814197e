"""The `Stream` RPC: many requests on one stream, answered in order."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from service.call import Call
from service.errors import InvalidRequest, Overloaded, ServiceError
from service.grpc.converters import refuse_unknown_fields
from service.grpc.errors import CODE
from service.grpc.generated import stream_pb2
from service.safety.protection import BodyMemory, BodyShare

# One request of a stream of `EncoderService`: as a call, and how its answer or error is told.

# Streams take turns with unary RPCs and with REST: a pipeline does not keep others waiting.
FLOW: Final = "stream"
# What a request may ask for, and the RPC that answers it.
STREAMED: Final[Mapping[str, str]] = {
    "embed_images": "EmbedImages",
    "embed_texts": "EmbedTexts",
    "segment_images": "SegmentImages",
    "estimate_depth": "EstimateDepth",
    "estimate_normals": "EstimateNormals",
    "classify_images": "ClassifyImages",
    "visualize_features": "VisualizeFeatures",
}


def begin_item(request: stream_pb2.StreamRequest, call: Call) -> str:
    """Make the call one that waits for its turn, and say what it asks for: a key of `STREAMED`.

    Raises:
        InvalidRequest: It asks for nothing, or has a field or a time that makes no sense.
    """
    call.flow, call.waits_for_capacity = FLOW, True
    refuse_unknown_fields(request, is_deep=False)
    if request.HasField("timeout"):
        timeout_s = request.timeout.seconds + 1e-9 * request.timeout.nanos
        if timeout_s <= 0:
            raise InvalidRequest("timeout: give a time greater than zero.", param="timeout")
        call.deadline = min(call.deadline, call.started + timeout_s)
    asked: str | None = request.WhichOneof("request")
    if asked is None:
        raise InvalidRequest(
            f"request: ask for one of {', '.join(STREAMED)}.", code="missing_field", param="request"
        )
    return asked


def stream_answer(
    answer: Message, request: stream_pb2.StreamRequest, call: Call
) -> stream_pb2.StreamResponse:
    """An answer with what tells whose it is."""
    written = stream_pb2.StreamResponse(id=request.id, index=call.item or 0)
    getattr(written, request.WhichOneof("request") or "").CopyFrom(answer)
    return written


def stream_error(
    error: ServiceError, request: stream_pb2.StreamRequest | None, call: Call
) -> stream_pb2.StreamResponse:
    """What is answered to a request without an answer; its id too, where it could be read."""
    delay = None
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
    told = stream_pb2.StreamError(
        code=CODE[error.kind].value[0],
        reason=error.code,
        message=error.message,
        field=error.param or "",
        retry_delay=delay,
        request_id=call.request_id,
    )
    request_id = request.id if request is not None else ""
    return stream_pb2.StreamResponse(id=request_id, index=call.item or 0, error=told)


# A stream of requests, answered in their order, some of them side by side.
#
# No more is read than is being answered or fits into memory, so the caller's sending stops where
# answers do: with a full queue, or a caller who does not read.

# Of answers that wait for the caller, or for those before them: beyond, nothing more is read.
MAX_UNSENT_BYTES: Final = 32 * 1024 * 1024
POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a stream: its bytes, its place from 0, and the memory that it holds."""

    raw: bytes
    index: int
    share: BodyShare


Answer = Callable[[Item], Awaitable[bytes]]


class AnsweredStream:
    """One stream; belongs to the event loop of its RPC.

    Args:
        context: The RPC's own, of the handler of a stream of bytes.
        answer: Answers one request, whatever comes of it; runs in a task of its own.
        memory: For the bytes of requests; where it is full, reading waits.
        max_requests: That are answered side by side, or wait for those before them.
        renew: Called whenever the caller has taken an answer or sent a request.
        leaving: Set once the server goes: nothing more is read, what was read is answered.
    """

    def __init__(
        self,
        context: Any,
        answer: Answer,
        *,
        memory: BodyMemory,
        max_requests: int,
        renew: Callable[[], None],
        leaving: asyncio.Event,
    ) -> None:
        self._context = context
        self._answer = answer
        self._memory = memory
        self._renew = renew
        self._leaving = leaving
        self._room = asyncio.Semaphore(max_requests)
        self._answers: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._num_unsent_bytes = 0
        self._sent = asyncio.Event()
        self._is_complete = False

    async def run(self) -> bool:
        """Answer until the caller has sent all; False where the server leaves before that.

        Raises:
            asyncio.CancelledError: The caller left; what he asked for is cancelled.
        """
        reader = asyncio.ensure_future(self._read())
        leaving = asyncio.ensure_future(self._leaving.wait())
        leaving.add_done_callback(lambda _: reader.cancel())
        self._tasks |= {reader, leaving}
        try:
            while (answer := await self._answers.get()) is not None:
                raw = await answer
                await self._context.write(raw)
                self._num_unsent_bytes -= len(raw)
                self._sent.set()
                self._renew()
                self._room.release()
            await asyncio.wait({reader})
            if not reader.cancelled():
                reader.result()
            return self._is_complete
        finally:
            tasks, self._tasks = self._tasks, set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        try:
            index = 0
            while True:
                await self._until_room()
                raw = await self._context.read()
                if raw is grpc.aio.EOF:
                    self._is_complete = True
                    return
                self._renew()
                share = await self._hold(len(raw))
                task = asyncio.ensure_future(self._answer(Item(raw, index, share)))
                del raw
                self._tasks.add(task)
                task.add_done_callback(partial(self._answered, share))
                self._answers.put_nowait(task)
                index += 1
        finally:
            self._answers.put_nowait(None)

    async def _until_room(self) -> None:
        await self._room.acquire()
        while self._num_unsent_bytes > MAX_UNSENT_BYTES:
            self._sent.clear()
            await self._sent.wait()

    async def _hold(self, num_bytes: int) -> BodyShare:
        """Memory for a request that is here, as soon as others give it back."""
        share = self._memory.share()
        while not self._memory.has_room(num_bytes):
            self._renew()
            await asyncio.sleep(POLL_S)
        # Another thread may have come in between; then the answer says so.
        with suppress(Overloaded):
            share.hold(num_bytes)
        return share

    def _answered(self, share: BodyShare, task: "asyncio.Future[bytes]") -> None:
        self._tasks.discard(task)
        share.give_back()  # a task that is cancelled before it began has not
        if not task.cancelled() and task.exception() is None:
            self._num_unsent_bytes += len(task.result())
