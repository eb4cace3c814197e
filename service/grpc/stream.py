"""The `Stream` RPC: many requests on one stream, some at once, answered in order.

If requests wait for room or the caller does not read, HTTP/2's flow control stops the caller.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration

from service.admission import ServerState, Ticket, unavailable
from service.call import Call, caller_of
from service.errors import DeadlineExceeded, InvalidRequest, ServiceError
from service.grpc.converters import refuse_unknown_fields
from service.grpc.errors import CODE
from service.grpc.generated import stream_pb2

# Requests of a stream that are worked on or wait to be sent.
MAX_REQUESTS: Final = 64
STREAM_KINDS: Final = tuple(
    field.name for field in stream_pb2.StreamRequest.DESCRIPTOR.oneofs_by_name["request"].fields
)


@dataclass(slots=True, eq=False)
class StreamItem:
    """One request of a stream.

    Attributes:
        raw: Its bytes, until they are parsed.
        index: Its index from 0.
        taken: Set once it has taken what it needs, or has ended.
        ticket: What it holds until its answer is sent.
    """

    raw: bytes
    index: int
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    ticket: Ticket | None = None

    def end(self, task: "asyncio.Task[bytes]") -> None:
        """It takes no more."""
        self.taken.set()

    def release(self) -> None:
        """Give back what it holds."""
        self.raw = b""  # still there if it was not parsed
        if self.ticket is not None:
            self.ticket.release()


Answer = Callable[[StreamItem], Coroutine[Any, Any, bytes]]


class AnsweredStream:
    """Answers the requests of a stream in order, some at once, until the caller ends it.

    A request takes what it needs before the next one is read, so requests take in their order.

    Args:
        context: Context of the RPC, whose messages are bytes.
        answer: Answers one request, also with an error; runs in a task of its own.
        closing: Set when the server closes: no request is read, those read are answered.
        idle_s: A stream without a request or an answer for so long ends.
    """

    def __init__(
        self,
        context: Any,
        answer: Answer,
        *,
        closing: asyncio.Event,
        idle_s: float,
    ) -> None:
        self._context = context
        self._closing = closing
        self._answer = answer
        self._idle_s = idle_s
        self._window = asyncio.Semaphore(MAX_REQUESTS)
        # Of the requests that are read and not yet sent, in order; None is the end of the stream.
        self._unsent: asyncio.Queue[StreamItem | None] = asyncio.Queue()
        self._answers: dict[StreamItem, asyncio.Task[bytes]] = {}
        self._limit: asyncio.Timeout

    async def run(self) -> None:
        """Answer until the caller ends the stream.

        Raises:
            DeadlineExceeded: The stream was idle.
            Unavailable: The server closes.
        """
        reading = asyncio.create_task(self._read())
        closing = asyncio.create_task(self._closing.wait())
        closing.add_done_callback(lambda _: reading.cancel())
        try:
            async with asyncio.timeout(self._idle_s) as self._limit:
                while (item := await self._unsent.get()) is not None:
                    await self._send(item)
                await asyncio.wait({reading})
                if reading.cancelled():
                    raise unavailable(ServerState.DRAINING)
                reading.result()
        except TimeoutError:
            raise DeadlineExceeded(
                f"The stream was idle for {self._idle_s:g} s; open a new one.", code="idle_stream"
            ) from None
        finally:
            tasks = (reading, closing, *self._answers.values())
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:  # also if the RPC is cancelled after a failed write
                for item in self._answers:
                    item.release()

    async def _read(self) -> None:
        try:
            for index in count():
                await self._window.acquire()
                raw = await self._context.read()
                self._renew()
                if raw is grpc.aio.EOF:
                    return
                item = StreamItem(bytes(raw), index)
                del raw
                self._answers[item] = asyncio.create_task(self._answer(item))
                self._answers[item].add_done_callback(item.end)
                self._unsent.put_nowait(item)
                await item.taken.wait()
        finally:
            self._unsent.put_nowait(None)

    async def _send(self, item: StreamItem) -> None:
        await self._context.write(await self._answers[item])
        self._renew()
        item.release()
        del self._answers[item]
        self._window.release()

    def _renew(self) -> None:
        self._limit.reschedule(asyncio.get_running_loop().time() + self._idle_s)


def begin_item(request: stream_pb2.StreamRequest, call: Call) -> str:
    """Apply a request's time limit to its call, and let the call wait for capacity.

    Returns:
        Name of the request's field that is set, such as `embed_images`.

    Raises:
        InvalidRequest: No such field is set, a field is unknown, or the time limit is invalid.
    """
    # Streams share the lanes fairly with unary RPCs and with REST.
    call.caller, call.waits_for_capacity = caller_of("stream", call.host), True
    refuse_unknown_fields(request, is_deep=False)
    if request.HasField("timeout"):
        timeout_s = request.timeout.seconds + 1e-9 * request.timeout.nanos
        if timeout_s <= 0:
            raise InvalidRequest("timeout: must be greater than zero.", param="timeout")
        call.shorten(call.started + timeout_s)
    kind: str | None = request.WhichOneof("request")
    if kind is None:
        raise InvalidRequest(
            f"request: set one of {', '.join(STREAM_KINDS)}.", code="missing_field", param="request"
        )
    return kind


def stream_error(
    error: ServiceError, request: stream_pb2.StreamRequest | None, call: Call
) -> stream_pb2.StreamResponse:
    """The answer for a failed request, with its id if it could be parsed."""
    delay = None
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
    details = stream_pb2.StreamError(
        code=CODE[type(error)].value[0],
        reason=error.code,
        message=error.message,
        field=error.param or "",
        retry_delay=delay,
        request_id=call.request_id,
    )
    request_id = request.id if request is not None else ""
    return stream_pb2.StreamResponse(id=request_id, index=call.item or 0, error=details)
