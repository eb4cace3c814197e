"""The room of one admitted request, at the door and in its model, until its block ends."""

import asyncio
from types import TracebackType

from service.call import Call, deadline_exceeded
from service.door import Door
from service.models.admission import Ticket


class Admitted:
    """Leaves door and model when the block ends, and ends it when the deadline passes.

    Written out instead of generated, for every request passes through it.
    """

    __slots__ = ("_door", "_limit", "_ticket")

    def __init__(self, door: Door, ticket: Ticket, call: Call) -> None:
        self._door, self._ticket = door, ticket
        self._limit = asyncio.timeout_at(
            asyncio.get_running_loop().time() + max(0.0, call.deadline - call.clock())
        )

    async def __aenter__(self) -> Ticket:
        await self._limit.__aenter__()
        return self._ticket

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise deadline_exceeded() from None
        finally:
            self._ticket.__exit__(kind, error, traceback)
            self._door.leave()
