"""Units of work: items, the batches that lanes compute of them, and their results."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from model.graphs import PATCH_OUTPUTS, DenseTask, PatchOutput
from service.call import DEFAULT_PRIORITY, Call
from service.errors import ServiceError
from service.waiting import error_of

# Images to embed, texts to embed, images for a dense head, and images for both in one pass.
Kind = (
    DenseTask
    | Literal[
        "image",
        "text",
        "image+depth",
        "image+normals",
        "image+segmentation",
        "image+depth+normals",
        "image+depth+segmentation",
        "image+normals+segmentation",
        "image+depth+normals+segmentation",
    ]
)
Outputs = Mapping[str, NDArray[np.float32]]
MAX_BATCH_TEXTS: Final = 64


def image_kind(tasks: Collection[DenseTask]) -> Kind:
    """The kind of images to embed that also go through these heads."""
    return cast("Kind", "+".join(("image", *sorted(tasks)))) if tasks else "image"


class Bucket(NamedTuple):
    """Items that can share a batch: images of one (height, width), texts of one padded length."""

    # Not a dataclass: the queue, the lanes and admission look up several buckets for each item,
    # and a tuple is hashed and compared in C.

    kind: Kind
    shape: tuple[int, ...]

    @property
    def label(self) -> str:
        """Name in logs and metrics, such as `image 112x112`."""
        return f"{self.kind} {'x'.join(map(str, self.shape))}"

    @property
    def is_image(self) -> bool:
        """Whether the items are images, for embeddings or for a dense head."""
        return self.kind != "text"


def image_work(kind: Kind) -> int:
    """Time and memory of an image, as a multiple of those of its embedding.

    A dense head needs about as much as the backbone before it.
    """
    return 1 + kind.count("+") if kind.startswith("image") else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """Limits of one batch.

    Attributes:
        max_images: Most images to embed; with dense heads fewer, and so of their patches.
        max_patches: Most patches of images to embed.
        max_tokens: Most tokens of texts.
    """

    max_images: int
    max_patches: int
    max_tokens: int

    def fits(self, kind: Kind, num_items: int, cost: int) -> bool:
        """Whether a batch may have this size; a single item always fits."""
        if num_items <= 1:
            return True
        if kind == "text":
            return num_items <= MAX_BATCH_TEXTS and cost <= self.max_tokens
        work = image_work(kind)
        return num_items * work <= self.max_images and cost * work <= self.max_patches


@dataclass(slots=True, kw_only=True)
class Completed:
    """Outputs of one item, and its time in the queue and in the batch in seconds.

    Attributes:
        outputs: By name.
        queue_s: In the queue.
        run_s: In the batch.
        ended: Monotonic seconds of the batch's end; None if no batch computed it.
    """

    outputs: Outputs
    queue_s: float
    run_s: float
    ended: float | None = None


def record_batches(done: Sequence[Completed], call: Call) -> None:
    """Record queue and run time in the call. Items run in parallel, so the slowest one counts."""
    queue_s = run_s = 0.0
    for item in done:
        queue_s, run_s = max(queue_s, item.queue_s), max(run_s, item.run_s)
        if item.ended is not None:
            started = item.ended - item.run_s
            call.trace.stage("queue", started - item.queue_s, started)
            call.trace.stage("run", started, item.ended)
    call.wait("queue", queue_s)
    call.wait("run", run_s)


class ItemFuture(Future[Completed]):
    """Result of an item, from any thread. Its caller can leave also while a lane computes it.

    Attributes:
        is_abandoned: Whether the caller cancelled it while it ran.
        on_left: Called once when the caller cancels or abandons it, in the caller's thread; set by
            the queue, then by the lane.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_abandoned = False
        self.on_left: Callable[[], None] | None = None

    @property
    def error(self) -> ServiceError | None:
        """Why it failed, if it has; does not wait."""
        return cast("ServiceError | None", error_of(self))

    def start(self) -> bool:
        """A lane takes the item; False if it is cancelled."""
        return self.set_running_or_notify_cancel()

    def settle(self, value: Completed | None = None, error: ServiceError | None = None) -> None:
        """Give it its result or error, unless it has one already or is cancelled."""
        with suppress(InvalidStateError):
            if value is not None:
                self.set_result(value)
            else:
                self.set_exception(error)
        # It refers to the batch, and so to this future: without this, images would stay in memory
        # until the garbage collector runs, which at rest is never.
        self.on_left = None

    def cancel(self) -> bool:
        """Cancel a waiting item; mark a running one as abandoned."""
        has_left = self.is_abandoned or self.cancelled()
        is_cancelled = super().cancel()
        self.is_abandoned |= self.running()
        on_left = self.on_left
        if on_left is not None and not has_left and (is_cancelled or self.is_abandoned):
            on_left()
        if is_cancelled:
            self.on_left = None
        return is_cancelled


# What is made for every item and every batch is not frozen: that doubles the time to make it.
@dataclass(slots=True, kw_only=True, eq=False)
class WorkItem:
    """One image or text, ready for the runtime.

    Attributes:
        bucket: Its shape; only items of one bucket share a batch.
        cost: In patches or tokens.
        payload: Model input of an image, token ids of a text.
        deadline: Monotonic seconds.
        priority: 1 is the highest.
        caller: Name of the caller, for fair scheduling.
        patch_outputs: Of an image to embed: those that its request needs.
        future: Gets its result.
        number: In order of arrival; set by the queue.
        enqueued: Monotonic seconds of its arrival in the queue.
    """

    bucket: Bucket
    cost: int
    payload: NDArray[Any]
    deadline: float = math.inf
    priority: int = DEFAULT_PRIORITY
    caller: str = ""
    patch_outputs: Collection[PatchOutput] = PATCH_OUTPUTS
    future: ItemFuture = field(default_factory=ItemFuture)
    number: int = 0
    enqueued: float = 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class Batch:
    """Items that a lane computes in one run; their futures can no longer be cancelled."""

    bucket: Bucket
    items: tuple[WorkItem, ...]
    taken: float

    @property
    def cost(self) -> int:
        """Cost of all items."""
        return sum([item.cost for item in self.items])

    @property
    def patch_outputs(self) -> Collection[PatchOutput]:
        """What any item needs: one batch serves them all."""
        needed = [item.patch_outputs for item in self.items]
        return needed[0] if len(needed) == 1 else frozenset().union(*needed)

    @property
    def is_abandoned(self) -> bool:
        """Whether every caller has left. Never true for texts: the cache keeps their results."""
        return self.bucket.is_image and all([item.future.is_abandoned for item in self.items])
