"""A stream of requests, answered in their order, some of them side by side.

No more is read than is being answered, so the caller's sending stops where answers do.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import grpc

# Of one stream, being answered or waiting for the one before them to be.
MAX_SIDE_BY_SIDE: Final = 16

Answer = Callable[[bytes], Awaitable[bytes]]


class AnsweredStream:
    """One stream; belongs to the event loop of its RPC.

    Args:
        context: The RPC's own, of the handler of a stream of bytes.
        answer: Answers one request, whatever comes of it; runs in a task of its own.
        renew: Called whenever the caller has taken an answer or sent a request.
        leaving: Set once the server goes: nothing more is read, what was read is answered.
    """

    def __init__(
        self, context: Any, answer: Answer, renew: Callable[[], None], leaving: asyncio.Event
    ) -> None:
        self._context = context
        self._answer = answer
        self._renew = renew
        self._leaving = leaving
        self._room = asyncio.Semaphore(MAX_SIDE_BY_SIDE)
        self._answers: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue()
        self._tasks: set[asyncio.Future[Any]] = set()

    async def run(self) -> bool:
        """Answer until the caller has sent all; False where the server leaves before that.

        Raises:
            asyncio.CancelledError: The caller left; what he asked for is cancelled.
        """
        reader = asyncio.ensure_future(self._read())
        self._tasks.add(reader)
        try:
            while (answer := await self._answers.get()) is not None:
                await self._context.write(await answer)
                self._renew()
                self._room.release()
            return await reader
        finally:
            tasks, self._tasks = self._tasks, set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> bool:
        try:
            while await self._either(self._room.acquire()):
                raw = await self._either(self._context.read())
                if raw is None:
                    return False
                if raw is grpc.aio.EOF:
                    return True
                self._renew()
                task = asyncio.ensure_future(self._answer(raw))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                self._answers.put_nowait(task)
            return False
        finally:
            self._answers.put_nowait(None)

    async def _either(self, work: Any) -> Any:
        """The outcome of the work, or None once the server leaves."""
        doing = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return doing.result() if doing.done() else None
        finally:
            leaving.cancel()
            if not doing.done():
                doing.cancel()
                with suppress(asyncio.CancelledError):
                    await doing
