"""The pace at which a host's refusals are sent, over both protocols."""

import asyncio
from contextlib import suppress
from typing import Final

from service.errors import ErrorKind

# For want of a key or of room: to find that out takes no work, so callers can be refused often.
PACED_KINDS: Final = frozenset(
    {ErrorKind.UNAUTHENTICATED, ErrorKind.FORBIDDEN, ErrorKind.OVERLOADED}
)
# Refusals of one host: beyond so many at once they are sent at this rate, which takes some 15 % of
# a core. A proxy that is not trusted is one host too, so it is not less.
REFUSALS_AT_ONCE: Final = 100
REFUSALS_PER_S: Final = 300
# Shorter than the time-outs of clients and proxies.
MAX_REFUSAL_WAIT_S: Final = 5.0
# With fewer hosts, entries that no longer matter are kept: looking for them would cost more.
MIN_FLOWS: Final = 1024


class RefusalPace:
    """Sends the refusals of a host at a bounded rate; the others wait, and their requests are over.

    1,000 clients that asked again as soon as they were refused made 1,900 requests a second. To
    refuse them took a core, and honest callers of other hosts waited five times as long; next to
    wrong keys, 8,500 a second over REST and 3,100 over gRPC, five and eight times. Every request is
    still tried when it arrives, so a host that waits loses no answer but a refusal. Belongs to one
    event loop.
    """

    def __init__(self) -> None:
        # By flow: when the last refusal was due, or will be.
        self._due: dict[str, float] = {}
        self._room = MIN_FLOWS

    @property
    def num_flows(self) -> int:
        """How many flows are remembered."""
        return len(self._due)

    def wait_s(self, flow: str, now: float) -> float:
        """How long the next refusal of a flow waits; not above 0 if it does not."""
        unused = now - REFUSALS_AT_ONCE / REFUSALS_PER_S
        if len(self._due) >= self._room:
            self._due = {one: due for one, due in self._due.items() if due > unused}
            self._room = max(MIN_FLOWS, 2 * len(self._due))
        due = max(self._due.get(flow, unused), unused) + 1 / REFUSALS_PER_S
        self._due[flow] = due = min(due, now + MAX_REFUSAL_WAIT_S)
        return due - now

    async def wait(self, flow: str, is_needed: asyncio.Event) -> None:
        """Return when a refusal may be sent: in its turn, or when it is needed."""
        wait_s = self.wait_s(flow, asyncio.get_running_loop().time())
        if wait_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await is_needed.wait()
