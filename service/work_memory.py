"""One memory for answers until they are sent, and for images while they are decoded."""

import asyncio
import threading
from typing import Final

from service.answer_size import AnswerSize
from service.call import Call
from service.errors import Overloaded, RequestTooLarge
from service.models.admission import CapacityWaiter
from service.turns import FlowTurns

RETRY_S: Final = 1.0
MB: Final = 1_000_000
# While requests wait for the memory that answers hold, a client must read at least this fast, and
# may be behind by no more than this. Else a few answers read byte by byte would stop all others.
CONTENDED_BYTES_PER_S: Final = 1024 * 1024
CONTENDED_LIMIT_S: Final = 2.0


class WorkMemory:
    """Bounds the bytes of all answers until they are sent, and of all images while decoded.

    A request waits for its share before its images are decoded, at most until its deadline; flows
    take turns. While shares were taken after the work, the requests of 1,000 clients that read
    slowly kept both lanes busy for 5 s, although few of their answers could be sent. The images are
    decoded before the answer is made, so a share is the larger of the two. It is taken at once, so
    no request waits for memory while it holds some.

    The requests of a stream take two shares: one to decode, which they free when they have decoded,
    and then one for the answer, in the order of the requests. So they hold nothing while they wait.
    If the answer's share came first, each would wait for all small answers of earlier requests.

    The memory for bodies is another one: requests that wait here hold their bodies, so with a
    common one they could wait for each other. Thread-safe; the event loops of both transports and
    the threads that read headers and decode use it.
    """

    def __init__(self, max_bytes: int, max_answer_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_answer_bytes = max_answer_bytes
        self._num_bytes = self._num_for_answers = 0
        self._waiting: FlowTurns[_Waiter] = FlowTurns()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of all shares."""
        return self._num_bytes

    @property
    def is_contended(self) -> bool:
        """Whether a request waits until an answer is sent, and not only for images of others."""
        with self._lock:
            if not self._waiting:
                return False
            num_needed = self._waiting.next().share.num_bytes
            return self._num_for_answers + num_needed > self._max_bytes

    def check(self, size: AnswerSize) -> None:
        """Check an answer before the work on it begins.

        Raises:
            RequestTooLarge: It is larger than an answer may be, or than the memory for all of them.
        """
        if size.num_sent > self._max_answer_bytes or size.num_held > self._max_bytes:
            raise RequestTooLarge(
                f"The answer would have {_mb(size.num_sent)} and need {_mb(size.num_held)} of "
                f"memory; at most {_mb(self._max_answer_bytes)} and {_mb(self._max_bytes)} are "
                "allowed. Send fewer or smaller images, omit scores, request maps of size model, "
                "or request arrays as safetensors, npy or base64 instead of JSON lists.",
                code="answer_too_large",
                param="images",
            )

    def hold_now(self, call: Call, answer_bytes: int, decoding_bytes: int) -> "Share | None":
        """Take a share if there is room and no request waits; from any thread.

        The call frees its answer's part at its end. If it has ended meanwhile, the caller does.
        """
        share = self._share(answer_bytes, decoding_bytes)
        with self._lock:
            if self._waiting or not self._fits(share):
                return None
            self._count(share, 1)
        if answer_bytes:
            call.answer_memory = share
        return share

    async def hold(self, call: Call, answer_bytes: int, decoding_bytes: int = 0) -> "Share":
        """Wait for a share; the call frees its answer's part at its end.

        Raises:
            Overloaded: There was no room before the deadline.
        """
        share = self._share(answer_bytes, decoding_bytes)
        order, item = call.answer_order if answer_bytes else None, call.item or 0
        try:
            if order is not None:
                async with asyncio.timeout(call.remaining_s()):
                    await order.wait(item)
            await self._take(share, call)
        except TimeoutError:
            raise Overloaded(
                "The memory for images and answers is full; try again.",
                code="work_memory_full",
                retry_after_s=RETRY_S,
            ) from None
        if answer_bytes:
            call.answer_memory = share
        if order is not None:
            order.passes(item)
        return share

    async def _take(self, share: "Share", call: Call) -> None:
        with self._lock:
            if not self._waiting and self._fits(share):
                self._count(share, 1)
                return
            waiter = _Waiter(share)
            self._waiting.add(call.flow, waiter)
        try:
            await waiter.wait(call.remaining_s())
        except BaseException:
            with self._lock:
                if waiter.is_admitted:
                    self._count(share, -1)
                else:
                    self._waiting.remove(call.flow, waiter)
                self._admit()
            raise

    def lower(self, share: "Share", *, answer_bytes: int, decoding_bytes: int) -> None:
        """Free a part of a share, and admit requests that wait."""
        with self._lock:
            self._count(share, -1)
            share.answer_bytes = min(answer_bytes, share.answer_bytes)
            share.decoding_bytes = min(decoding_bytes, share.decoding_bytes)
            self._count(share, 1)
            self._admit()

    def _share(self, answer_bytes: int, decoding_bytes: int) -> "Share":
        # Of little memory an image may take more than all: then it is decoded alone.
        return Share(self, answer_bytes, min(decoding_bytes, self._max_bytes))

    def _fits(self, share: "Share") -> bool:
        return self._num_bytes + share.num_bytes <= self._max_bytes

    def _count(self, share: "Share", sign: int) -> None:
        self._num_bytes += sign * share.num_bytes
        self._num_for_answers += sign * share.answer_bytes

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting.next().share):
            _, waiter = self._waiting.pop()
            self._count(waiter.share, 1)
            waiter.admit()


class Share:
    """What a request holds of the memory: for its answer, and for its images while decoded."""

    __slots__ = ("_memory", "answer_bytes", "decoding_bytes")

    def __init__(self, memory: WorkMemory, answer_bytes: int, decoding_bytes: int) -> None:
        self._memory = memory
        self.answer_bytes = answer_bytes
        self.decoding_bytes = decoding_bytes

    @property
    def num_bytes(self) -> int:
        """The larger of the two: the images are decoded before the answer is made."""
        return max(self.answer_bytes, self.decoding_bytes)

    @property
    def is_contended(self) -> bool:
        """See `WorkMemory.is_contended`."""
        return self._memory.is_contended

    def free(self) -> None:
        """The answer is sent, or there is none; images may still be decoded."""
        if self.answer_bytes:
            self._memory.lower(self, answer_bytes=0, decoding_bytes=self.decoding_bytes)

    def decoded(self) -> None:
        """No image is being decoded any more; later calls have no effect."""
        if self.decoding_bytes:
            self._memory.lower(self, answer_bytes=self.answer_bytes, decoding_bytes=0)


class _Waiter(CapacityWaiter):
    """A request that waits for its share."""

    __slots__ = ("share",)

    def __init__(self, share: Share) -> None:
        super().__init__(share.num_bytes)
        self.share = share


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / MB:.0f} MB"
