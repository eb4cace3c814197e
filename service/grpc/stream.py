"""The `Stream` RPC: many requests on one stream, some at once, answered in order.

A request is read only if it is worked on at once or fits into memory. If the queue is full or the
caller does not read, HTTP/2 flow control stops the caller.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from service.call import AnswerOrder, Call, HeldMemory, flow_of
from service.errors import InvalidRequest, Overloaded, ServiceError
from service.grpc.converters import refuse_unknown_fields
from service.grpc.errors import CODE
from service.grpc.generated import stream_pb2
from service.grpc.receiving import ReceivePlaces
from service.grpc.writing import Enclosed
from service.models.admission import STREAM_FLOW
from service.safety.protection import BodyMemory, BodyShare
from service.work_memory import CONTENDED_BYTES_PER_S, CONTENDED_LIMIT_S

STREAM_KINDS: Final = tuple(
    field.name for field in stream_pb2.StreamRequest.DESCRIPTOR.oneofs_by_name["request"].fields
)
# Bytes of answers that wait to be sent; with more, no further request is read.
MAX_UNSENT_BYTES: Final = 32 * 1024 * 1024
# Why the server cancels the task of an RPC.
UNREAD: Final = "the caller does not read the answer"
POLL_S: Final = 0.02
CHECK_S: Final = 0.5


@dataclass(slots=True)
class StreamItem:
    """One request of a stream.

    Attributes:
        raw: Its bytes.
        index: Its index from 0.
        share: Its share of body memory.
        order: Order in which the requests of the stream take memory for their answers.
        memory: What its answer holds until it is sent.
    """

    raw: bytes
    index: int
    share: BodyShare
    order: AnswerOrder
    memory: HeldMemory | None = None

    def free(self) -> None:
        """Free the memory of the answer."""
        if self.memory is not None:
            self.memory.free()


Answer = Callable[[StreamItem], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Limits of streams.

    Attributes:
        memory: Counts the bytes of requests; while it is full, none is read.
        places: Places for messages that are being received, shared by all streams.
        max_requests: Most requests of one stream that are worked on or wait to be sent.
    """

    memory: BodyMemory
    places: ReceivePlaces
    max_requests: int


class AnsweredStream:
    """One stream. Belongs to the event loop of its RPC.

    Args:
        context: Context of the RPC, whose messages are bytes.
        answer: Answers one request, also with an error; runs in a task of its own.
        limits: Limits of memory and requests.
        renew: Called for every request received and every answer sent.
        closing: Set when the server closes: no request is read, those read are answered.
    """

    def __init__(
        self,
        context: Any,
        answer: Answer,
        *,
        limits: StreamLimits,
        renew: Callable[[], None],
        closing: asyncio.Event,
    ) -> None:
        self._context = context
        self._answer = answer
        self._memory = limits.memory
        self._places = limits.places
        self._renew = renew
        self._closing = closing
        self._free_places = asyncio.Semaphore(limits.max_requests)
        self._answers: asyncio.Queue[tuple[StreamItem, asyncio.Future[bytes]] | None] = (
            asyncio.Queue()
        )
        self._order = AnswerOrder()
        self._unsent: dict[int, StreamItem] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._num_unsent_bytes = 0
        self._sent = asyncio.Event()
        self._is_complete = False

    async def run(self) -> bool:
        """Answer until the caller ends the stream; False if the server closes before that.

        Raises:
            asyncio.CancelledError: The caller left; its requests are cancelled.
            Overloaded: The next request did not arrive while other streams waited. The stream ends
                at once, since the core keeps what has arrived of the request until then.
        """
        refusal: list[Overloaded] = []
        try:
            async with asyncio.timeout(None) as limit:

                def refuse(error: Overloaded) -> None:
                    refusal.append(error)
                    limit.reschedule(asyncio.get_running_loop().time())

                return await self._run(refuse)
        except TimeoutError:
            if refusal:
                raise refusal[0] from None
            raise

    async def _run(self, refuse: Callable[[Overloaded], None]) -> bool:
        reader = asyncio.ensure_future(self._read(refuse))
        closing = asyncio.ensure_future(self._closing.wait())
        closing.add_done_callback(lambda _: reader.cancel())
        self._tasks |= {reader, closing}
        try:
            while (answer := await self._answers.get()) is not None:
                item, task = answer
                raw = await task
                await write_answer(raw, item.memory, self._context)
                self._num_unsent_bytes -= len(raw)
                del answer, task, raw  # else it stays in memory while the next answer is made
                self._unsent.pop(item.index).free()
                self._sent.set()
                self._renew()
                self._free_places.release()
            await asyncio.wait({reader})
            if not reader.cancelled():
                reader.result()
            return self._is_complete
        finally:
            tasks, self._tasks = self._tasks, set()
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:  # also if the RPC is cancelled after a failed write
                for item in self._unsent.values():
                    item.free()

    async def _read(self, refuse: Callable[[Overloaded], None]) -> None:
        try:
            index = 0
            while True:
                await self._wait_for_place()
                raw = await self._places.read(self._context, lambda: bool(self._unsent))
                if raw is grpc.aio.EOF:
                    self._is_complete = True
                    return
                self._renew()
                share = await self._hold(len(raw))
                item = self._unsent[index] = StreamItem(raw, index, share, self._order)
                task = asyncio.ensure_future(self._answer(item))
                del raw
                self._tasks.add(task)
                task.add_done_callback(partial(self._answered, item))
                self._answers.put_nowait((item, task))
                index += 1
        except Overloaded as error:
            refuse(error)
        finally:
            self._answers.put_nowait(None)

    async def _wait_for_place(self) -> None:
        await self._free_places.acquire()
        while self._num_unsent_bytes > MAX_UNSENT_BYTES:
            self._sent.clear()
            await self._sent.wait()

    async def _hold(self, num_bytes: int) -> BodyShare:
        """Wait for memory for a received request."""
        share = self._memory.share()
        while not self._memory.has_room(num_bytes):
            self._renew()
            await asyncio.sleep(POLL_S)
        # Another thread may have taken it since; `parse_message` then refuses the request.
        with suppress(Overloaded):
            share.hold(num_bytes)
        return share

    def _answered(self, item: StreamItem, task: "asyncio.Future[bytes]") -> None:
        self._tasks.discard(task)
        item.share.give_back()  # a task that is cancelled before it starts does not
        item.raw = b""
        self._order.passes(item.index)
        if not task.cancelled() and task.exception() is None:
            self._num_unsent_bytes += len(task.result())


async def write_answer(raw: bytes, memory: HeldMemory | None, context: Any) -> None:
    """Send an answer, which the caller frees afterwards.

    The core does not report how much of it is read. So the reader has the time that all of it takes
    at the lowest rate; after that, the RPC is cancelled as soon as others wait for memory.
    """
    if memory is None:
        await context.write(raw)
        return
    task = asyncio.current_task()
    assert task is not None

    async def watch(memory: HeldMemory) -> None:
        await asyncio.sleep(CONTENDED_LIMIT_S + len(raw) / CONTENDED_BYTES_PER_S)
        while not memory.is_contended:
            await asyncio.sleep(CHECK_S)
        task.cancel(UNREAD)

    watching = asyncio.ensure_future(watch(memory))
    try:
        await context.write(raw)
    finally:
        watching.cancel()


def begin_item(request: stream_pb2.StreamRequest, call: Call) -> str:
    """Apply a request's time limit to its call, and let the call wait for capacity.

    Returns:
        Name of the request's field that is set, such as `embed_images`.

    Raises:
        InvalidRequest: No such field is set, a field is unknown, or the time limit is invalid.
    """
    # Streams share the lanes fairly with unary RPCs and with REST.
    call.flow, call.waits_for_capacity = flow_of(STREAM_FLOW, call.host), True
    refuse_unknown_fields(request, is_deep=False)
    if request.HasField("timeout"):
        timeout_s = request.timeout.seconds + 1e-9 * request.timeout.nanos
        if timeout_s <= 0:
            raise InvalidRequest("timeout: must be greater than zero.", param="timeout")
        call.deadline = min(call.deadline, call.started + timeout_s)
    kind: str | None = request.WhichOneof("request")
    if kind is None:
        raise InvalidRequest(
            f"request: set one of {', '.join(STREAM_KINDS)}.", code="missing_field", param="request"
        )
    return kind


def stream_answer(answer: Message, request: stream_pb2.StreamRequest, call: Call) -> Enclosed:
    """An answer with the id and the index of its request."""
    outer = stream_pb2.StreamResponse(id=request.id, index=call.item or 0)
    field = outer.DESCRIPTOR.fields_by_name[request.WhichOneof("request") or ""]
    return Enclosed(outer, field.number, answer)


def stream_error(
    error: ServiceError, request: stream_pb2.StreamRequest | None, call: Call
) -> stream_pb2.StreamResponse:
    """The answer for a failed request, with its id if it could be parsed."""
    delay = None
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
    details = stream_pb2.StreamError(
        code=CODE[error.kind].value[0],
        reason=error.code,
        message=error.message,
        field=error.param or "",
        retry_delay=delay,
        request_id=call.request_id,
    )
    request_id = request.id if request is not None else ""
    return stream_pb2.StreamResponse(id=request_id, index=call.item or 0, error=details)
