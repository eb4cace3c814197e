"""What is computed: items, the batches that lanes make of them, and their answers."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.dense_maps import MapTask
from service.call import DEFAULT_PRIORITY, Call
from service.errors import ServiceError
from service.tracing import NO_BATCH, NO_TRACE, BatchTrace, RequestTrace

# Images that are embedded, texts, and images that a dense head says something of.
Kind = Literal["image", "text"] | MapTask
Outputs = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Items that can share a batch: images of one (height, width), texts of one padded length."""

    kind: Kind
    shape: tuple[int, ...]

    @property
    def label(self) -> str:
        """Such as `image 112x112`."""
        return f"{self.kind} {'x'.join(map(str, self.shape))}"

    @property
    def is_image(self) -> bool:
        """Whether its items are images, whatever is computed of them."""
        return self.kind != "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How much one batch may hold: items, and their cost in patches or tokens."""

    max_items: int
    max_cost: int

    def is_full(self, num_items: int, cost: int) -> bool:
        """Whether a batch of so much takes nothing more."""
        return num_items >= self.max_items or cost >= self.max_cost

    def fits(self, num_items: int, cost: int) -> bool:
        """Whether a batch may be so large; one item alone always may."""
        return num_items <= 1 or (num_items <= self.max_items and cost <= self.max_cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """One image or text, ready for the runtime; monotonic deadline in seconds.

    `flow` is whose item it is: flows that have much waiting do not keep the others from their turn.
    `trace` is its request's, which every batch that takes the item is linked to.
    """

    bucket: Bucket
    cost: int
    payload: NDArray[Any]
    deadline: float = math.inf
    priority: int = DEFAULT_PRIORITY
    flow: str = ""
    trace: RequestTrace = NO_TRACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """The runtime's outputs for one item, how long it waited and ran, in seconds, and its batch."""

    outputs: Outputs
    queue_s: float
    run_s: float
    batch: BatchTrace = NO_BATCH


def record_batches(done: Sequence[Completed], call: Call) -> None:
    """Record queue and run time in the call. Items run in parallel, so the slowest one counts."""
    call.wait("queue", max((d.queue_s for d in done), default=0.0))
    call.wait("run", max((d.run_s for d in done), default=0.0))
    for batch in {d.batch for d in done}:
        call.trace.ran_in(batch)


class ItemFuture(Future[Completed]):
    """An item's answer. Its caller may also leave while it is computed.

    Attributes:
        has_left: Whether the caller left then; the future itself can no longer be cancelled.
        on_left: Called once that happens, by the caller's thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_left = False
        self.on_left: Callable[[], None] | None = None

    def _invoke_callbacks(self) -> None:
        """Call the callbacks, and forget them.

        The library keeps them, and they lead back here by way of item and request: images would
        stay in memory until the garbage collector finds the circle, which at rest is never.
        """
        super()._invoke_callbacks()  # type: ignore[misc]  # private; typeshed leaves it out
        self._done_callbacks: list[Callable[[Future[Completed]], object]] = []

    def cancel(self) -> bool:
        """Cancel it where it waits; tell whoever computes it where it does not."""
        if super().cancel():
            return True
        if self.running() and not self.has_left:
            self.has_left = True
            if self.on_left is not None:
                self.on_left()
        return False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """An item that waits, with its caller's future. The lower rank goes first."""

    number: int
    item: WorkItem
    enqueued: float
    rank: tuple[float, int]
    future: ItemFuture = field(default_factory=ItemFuture)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Entries that a lane computes together; their futures can no longer be cancelled."""

    bucket: Bucket
    entries: tuple[Entry, ...]
    taken: float

    @property
    def cost(self) -> int:
        """Of all entries together."""
        return sum(entry.item.cost for entry in self.entries)

    @property
    def is_deserted(self) -> bool:
        """Whether every caller has left. Texts never are: the cache keeps them for the next."""
        return self.bucket.is_image and all(e.future.has_left for e in self.entries)


def settle(
    future: "Future[Completed]",
    *,
    value: Completed | None = None,
    error: ServiceError | None = None,
) -> None:
    """Answer a running future with a value or an error, unless it has been answered already."""
    with suppress(InvalidStateError):
        if error is not None:
            future.set_exception(error)
        elif value is not None:
            future.set_result(value)
