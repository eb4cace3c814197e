"""The room of one admitted request, at the door and in its model, until its block ends."""

import asyncio
from types import TracebackType

from service.call import Call, deadline_exceeded
from service.door import Door
from service.errors import Overloaded
from service.lanes.work import Kind
from service.models.admission import Admission, Ticket


class Admitted:
    """Enters door and model, leaves them when the block ends, and ends it at the deadline.

    Written out instead of generated, for every request passes through it.
    """

    __slots__ = ("_admission", "_call", "_cost", "_door", "_kind", "_limit", "_ticket")

    def __init__(
        self, door: Door, admission: Admission, *, cost: int, call: Call, kind: Kind | None = None
    ) -> None:
        self._door, self._admission = door, admission
        self._cost, self._call, self._kind = cost, call, kind
        self._limit: asyncio.Timeout
        self._ticket: Ticket

    async def __aenter__(self) -> Ticket:
        call = self._call
        with call.stage("admit"):
            self._door.enter()
            try:
                self._ticket = await self._admit()
            except BaseException:
                self._door.leave()
                raise
        self._limit = asyncio.timeout_at(
            asyncio.get_running_loop().time() + max(0.0, call.deadline - call.clock())
        )
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
            if isinstance(error, Overloaded):
                self._call.known_cost = self._ticket.wanted

    async def _admit(self) -> Ticket:
        call = self._call
        if not call.is_patient:
            return self._admission.admit(self._cost, call, self._kind)
        cost = max(self._cost, call.known_cost)
        return await self._admission.admit_patiently(cost, call, self._kind)
