"""Bounds the messages that gRPC receives at once, and shares the places among the callers.

Until a message is read, the core takes no more of it than the stream's window. From
`context.read()` on, it takes all of it, up to `max_request_bytes`, and does not report its
progress: 60 messages of 32 MB without their last byte held 1.9 GiB until their deadlines.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from model.image_codec import SMALL_DECODING_BYTES, most_decoding_bytes
from service.errors import Overloaded
from service.grpc.callers import peer_host
from service.images import QUEUED_PATCH_BYTES
from service.lanes.sizing import MAX_LANES
from service.models.loading import num_pool_threads
from service.monitoring.metrics import Metrics
from service.settings import Settings

RETRY_S: Final = 1.0
# While messages wait and no place becomes free for so long, one that is being received is refused.
MAX_STALL_S: Final = 2.0
# Longest wait for a place. The more messages wait, the sooner the next one is refused.
MAX_WAIT_S: Final = 6.0
# Streams have more places than unary RPCs, since a stream that waits for its caller holds one.
STREAM_PLACES: Final = 4
# The same for open services, health and reflection. They need no key. Their messages fit into the
# window, so that reading one takes milliseconds.
NUM_OPEN_PLACES: Final = 2
OPEN_STALL_S: Final = 0.2
OPEN_WAIT_S: Final = 2.0
# Most concurrent RPCs of the open services: those that answer at once, and those that last as long
# as their connection. With one number for both, 64 watches refused all health checks.
MAX_OPEN_UNARY: Final = 64
MAX_OPEN_STREAMS: Final = 256

Waiter = asyncio.Future[None]


def max_caller_bytes(settings: Settings) -> int:
    """Most bytes that callers can make the server hold.

    The sum of the messages that gRPC is receiving, the windows of its RPCs (at times twice as much,
    as measured), received bodies and messages, small images that threads decode, the memory for
    larger ones and for answers, and decoded images that wait for a lane: full queues of all models,
    and pixels that came as float32, which are copied and may be as large as the bodies.
    """
    num_places = (1 + STREAM_PLACES) * settings.num_receive_places + NUM_OPEN_PLACES
    num_rpcs = settings.max_concurrent_rpcs + MAX_OPEN_UNARY + MAX_OPEN_STREAMS
    num_models = len(settings.model)
    num_decoding = num_pool_threads(settings) + num_models * (settings.lanes or MAX_LANES)
    return (
        num_places * settings.max_request_bytes
        + num_rpcs * 2 * settings.stream_window_bytes
        + 2 * settings.max_body_memory_bytes
        + num_decoding * SMALL_DECODING_BYTES
        + max(most_decoding_bytes(settings.max_image_pixels), settings.max_work_memory_bytes)
        + num_models * settings.max_queue_patches * QUEUED_PATCH_BYTES
    )


@dataclass(eq=False, slots=True)
class _Reader:
    """A message that is being received; the end of its limit refuses it."""

    peer: str
    limit: asyncio.Timeout
    has_work: Callable[[], bool]


class ReceivePlaces:
    """Places for messages that are being received. Belongs to the event loop of the server.

    A message that has arrived within its window takes a place for less than a millisecond.

    Args:
        num_places: Most messages that are received at once.
        max_waiting: Most messages that wait for a place.
        metrics: Counts refused messages.
        num_reserved: Places that only hosts without one may take. Next to a host whose messages
            never end, others wait for no refusal then.
        max_stall_s: See `MAX_STALL_S`.
        max_wait_s: See `MAX_WAIT_S`.
    """

    def __init__(
        self,
        num_places: int,
        max_waiting: int,
        metrics: Metrics,
        *,
        num_reserved: int = 0,
        max_stall_s: float = MAX_STALL_S,
        max_wait_s: float = MAX_WAIT_S,
    ) -> None:
        self._num_free = num_places
        self._num_reserved = num_reserved
        # Taken places by host.
        self._taken: Counter[str] = Counter()
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._max_stall_s = max_stall_s
        self._max_wait_s = max_wait_s
        self._clock = time.monotonic
        self._readers: list[_Reader] = []  # oldest first
        self._turns = Turns()
        # Since no message waited last. It keeps the rate of refusals while the queue gets shorter.
        self._most_waiting = 0
        self._last_turn = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, context: Any, has_work: Callable[[], bool] = lambda: False) -> Any:
        """Receive one message of an RPC: bytes, or `grpc.aio.EOF`.

        A stream that waits for its caller holds a place all the time: the core does not report that
        a message begins, and a read that has begun cannot be withdrawn.

        Args:
            context: Context of the RPC.
            has_work: Whether the RPC has answers to make or to send. Others are refused first.

        Raises:
            Overloaded: It did not arrive in time while others waited, or too many wait.
        """
        peer = context.peer()
        await self._wait_for_place(peer)
        reader: _Reader | None = None
        try:
            async with asyncio.timeout(None) as limit:
                reader = _Reader(peer, limit, has_work)
                self._readers.append(reader)
                return await context.read()
        except TimeoutError:
            raise self._refusal(
                "The message did not arrive in time while others waited; send it again.",
                code="message_too_slow",
            ) from None
        finally:
            if reader in self._readers:
                self._readers.remove(reader)
                self._pass_on(peer_host(peer))

    def _may_take(self, host: str) -> bool:
        return self._num_free > (self._num_reserved if self._taken[host] else 0)

    def _take(self, host: str) -> None:
        self._num_free -= 1
        self._taken[host] += 1

    async def _wait_for_place(self, peer: str) -> None:
        host = peer_host(peer)
        if self._may_take(host):  # then no message of this host waits
            self._take(host)
            return
        if not self._turns:
            self._last_turn = self._clock()
        if len(self._turns) >= self._max_waiting:
            error = self._refusal("Too many messages wait; try again.", code="too_many_messages")
            if self._turns.has_most(peer):
                raise error
            self._turns.pop_of_most().set_exception(error)
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._turns.add(peer, waiter)
        self._most_waiting = max(self._most_waiting, len(self._turns))
        self._set_timer()
        try:
            await waiter
        except asyncio.CancelledError:
            if not self._turns.remove(peer, waiter) and _has_place(waiter):
                self._pass_on(host)
            raise

    def _pass_on(self, host: str) -> None:
        """Give the place of a host to the next message that may take it."""
        self._last_turn = self._clock()
        self._num_free += 1
        self._taken[host] -= 1
        if not self._taken[host]:
            del self._taken[host]
        while (turn := self._turns.pop(self._may_take)) is not None:
            host, waiter = turn
            if not waiter.done():  # else its RPC was cancelled just now
                self._take(host)
                waiter.set_result(None)
        if not self._turns:
            self._most_waiting = 0
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._turns:
            stall_s = min(self._max_stall_s, self._max_wait_s / self._most_waiting)
            delay_s = self._last_turn + stall_s - self._clock()
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._refuse_one)

    def _refuse_one(self) -> None:
        """Refuse the oldest message of the host with most places.

        Idle RPCs go first, since their clients lose no answer; then the connection with most
        places.
        """
        if not self._readers:  # the places were given to tasks that have not run yet
            self._last_turn = self._clock()
            self._set_timer()
            return
        num_places = Counter(peer_host(reader.peer) for reader in self._readers)
        num_places.update(reader.peer for reader in self._readers)
        reader = max(
            self._readers,
            key=lambda one: (
                num_places[peer_host(one.peer)],
                not one.has_work(),
                num_places[one.peer],
            ),
        )
        self._readers.remove(reader)
        reader.limit.reschedule(asyncio.get_running_loop().time())
        self._pass_on(peer_host(reader.peer))

    def _refusal(self, message: str, *, code: str) -> Overloaded:
        self._metrics.rejected.labels(code).inc()
        return Overloaded(message, code=code, retry_after_s=RETRY_S)


def _has_place(waiter: Waiter) -> bool:
    """Whether a message that waits no more has got a place."""
    return waiter.done() and not waiter.cancelled() and waiter.exception() is None


class Turns:
    """Waiting messages. Hosts take turns, and so do the connections of a host.

    So one host does not lock out the others, nor one connection those of the same proxy.
    """

    def __init__(self) -> None:
        # By host and peer. The first of each is the next to be served; none is empty.
        self._hosts: dict[str, dict[str, deque[Waiter]]] = {}
        # Messages by host; none is zero.
        self._num_of: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._num_of.total()

    def add(self, peer: str, waiter: Waiter) -> None:
        """Queue a message behind those of its connection."""
        host = peer_host(peer)
        self._hosts.setdefault(host, {}).setdefault(peer, deque()).append(waiter)
        self._num_of[host] += 1

    def remove(self, peer: str, waiter: Waiter) -> bool:
        """Remove a message; False if it does not wait."""
        host = peer_host(peer)
        connections = self._hosts.get(host, {})
        queue = connections.get(peer, deque())
        if waiter not in queue:
            return False
        queue.remove(waiter)
        self._num_of[host] -= 1
        if not queue:
            del connections[peer]
        if not connections:
            del self._hosts[host], self._num_of[host]
        return True

    def pop(self, may_take: Callable[[str], bool]) -> tuple[str, Waiter] | None:
        """Remove the next message of a host that may take a place; both go to the end."""
        host = next(filter(may_take, self._hosts), None)
        if host is None:
            return None
        peer, queue = next(iter(self._hosts[host].items()))
        waiter = queue[0]
        self.remove(peer, waiter)
        connections = self._hosts.get(host, {})
        if peer in connections:
            connections[peer] = connections.pop(peer)
        if connections:
            self._hosts[host] = self._hosts.pop(host)
        return host, waiter

    def has_most(self, peer: str) -> bool:
        """Whether one more message of this connection would be the one of `pop_of_most`."""
        host = peer_host(peer)
        if self._num_of[host] + 1 < max(self._num_of.values(), default=0):
            return False
        connections = self._hosts.get(host, {})
        num_here = len(connections.get(peer, ())) + 1
        return num_here >= max(map(len, connections.values()), default=0)

    def pop_of_most(self) -> Waiter:
        """Remove the last message of the host, and then the connection, with most of them."""
        connections = self._hosts[max(self._num_of, key=self._num_of.__getitem__)]
        peer, queue = max(connections.items(), key=lambda item: len(item[1]))
        waiter = queue[-1]
        self.remove(peer, waiter)
        return waiter
