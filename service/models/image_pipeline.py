"""The images of one request: read headers, admit, decode, batch, run.

The steps alternate between the caller's event loop, the pool (headers, decoding) and the lanes. A
small image goes straight to a lane that is idle, which decodes it too.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.graphs import PatchOutput
from model.runtime.machine import trim
from service.call import Call
from service.errors import InternalError, ServiceError
from service.fair_pool import FairPool
from service.images import ImagePreparer, PreparedImage, SizeRule
from service.lanes.work import Completed, ItemFuture, Kind, Outputs, record_batches
from service.messages import MaybeImage
from service.models.admission import Ticket
from service.models.served_model import ServedModel
from service.waiting import ThreadResult, cancel_all
from service.work_memory import Share, WorkMemory

# Height and width of an image, and of its scaled pixels.
Sizes = tuple[tuple[int, int], tuple[int, int]]
# An idle lane decodes an image of at most so many bytes and pixels, which takes some milliseconds:
# until then it takes no batch.
MAX_LANE_BYTES: Final = 512 * 1024
MAX_LANE_PIXELS: Final = 1_000_000
# Smaller answers are not counted: a request in progress takes more than they do.
SMALL_ANSWER_BYTES: Final = 64 * 1024
# A request that takes more memory has the heap trimmed first: after other large requests, threads
# held up to 42 MiB of free pages, in pieces that a large image cannot use.
TRIMMED_BYTES: Final = 16 * 2**20
# If requests then take more than this together, runtimes free what they keep for later batches, and
# again before a large answer is made. Each time costs some 25 ms of CPU time with the next batch; a
# PNG of 25 megapixels takes 500.
RELEASED_BYTES: Final = 96 * 2**20

# From the heights and widths of images and their patches to the memory for the answer, in bytes.
SizeCheck = Callable[[Sequence[tuple[int, int]], Sequence[int]], int]


# What is made for every request is not frozen: that doubles the time to make it.
@dataclass(slots=True, kw_only=True)
class ImageJob:
    """The images of a request, and what to compute for them.

    Attributes:
        images: Encoded images or pixels, or why there is none.
        rule: The size at which the model sees them.
        kind: Which outputs are computed.
        patch_outputs: Which of the patch outputs are needed.
        check_sizes: Rejects images by their sizes, before any is decoded, and returns the memory
            for the answer.
        is_partial: Whether an unreadable image leaves the other images their answers.
    """

    images: Sequence[MaybeImage]
    rule: SizeRule
    kind: Kind = "image"
    patch_outputs: Collection[PatchOutput] = ()
    check_sizes: SizeCheck | None = None
    is_partial: bool = False


@dataclass(slots=True, kw_only=True)
class EncodedImage:
    """Model outputs for one image.

    Attributes:
        parts: Outputs of the whole image, or of each window.
        grid_hw: Patch rows and columns of one part.
        scaled_hw: Height and width of the scaled image in pixels.
        size_hw: Height and width of the original image in pixels.
    """

    parts: tuple[Completed, ...]
    grid_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    size_hw: tuple[int, int]

    @property
    def outputs(self) -> Outputs:
        """Outputs of a single-part image."""
        (completed,) = self.parts
        return completed.outputs


@dataclass(slots=True)
class EncodedImages:
    """The images that could be read, in order, and the errors of the others by their index."""

    images: Sequence[EncodedImage] = ()
    errors: dict[int, ServiceError] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class _ImageRun:
    """State of one request, shared by its coroutine and the threads that work for it."""

    job: ImageJob
    model: ServedModel
    call: Call
    ticket: Ticket
    result: ThreadResult[bool] = field(default_factory=ThreadResult)
    cost: int = 0
    # Memory that its answer takes, 0 if it is small, and that `max_at_once` images take while they
    # are decoded; and its share of the memory.
    answer_bytes: int = 0
    decoding_bytes: int = 0
    max_at_once: int = 1
    memory: Share | None = None
    errors: dict[int, ServiceError] = field(default_factory=dict)
    readable: Sequence[int] = ()
    # Of each image that was queued: its own and its scaled height and width; and its parts.
    sizes: list[tuple[Sizes, int]] = field(default_factory=list)
    futures: Sequence[ItemFuture] = ()
    submitted: float | None = None
    is_cancelled: bool = False
    # Whether the thread of a lane reads and decodes its only image.
    is_on_lane: bool = False

    @property
    def is_small(self) -> bool:
        """Whether a lane may decode it, as far as is known without the header."""
        image = self.job.images[0]
        return (
            len(self.job.images) == 1
            and self.job.rule.windows is None
            and isinstance(image, bytes)
            and len(image) <= MAX_LANE_BYTES
        )

    @property
    def first_bytes(self) -> tuple[int, int]:
        """Bytes of the answer and of decoding to take at once; a stream takes the first later."""
        return 0 if self.call.waits_for_capacity else self.answer_bytes, self.decoding_bytes

    def on_done(self, future: ItemFuture) -> None:
        """One of the futures is settled."""
        if future.state != "cancelled":
            self.result.arrive(True, future.error)


class ImagePipeline:
    """Runs the images of requests through the pool and the lanes; from any event loop.

    `run` starts one job, which reads the headers, decodes and submits; the last lane wakes `run`.
    There is no step on the event loop in between, because each one costs some 100 us of CPU time, a
    third of what the core spends on a small request. So does the way from a thread of the pool to
    one of a lane; a small image that finds a lane idle saves it.
    """

    def __init__(self, preparer: ImagePreparer, pool: FairPool, memory: WorkMemory) -> None:
        self._preparer = preparer
        self._pool = pool
        self._memory = memory

    async def run(
        self, job: ImageJob, model: ServedModel, call: Call, ticket: Ticket
    ) -> EncodedImages:
        """Decode and encode all images of a request, once there is memory for its answer.

        Args:
            job: The images.
            model: The model that encodes them.
            call: The call that they belong to.
            ticket: The admission of the request; its cost is corrected once headers are read.

        Raises:
            InvalidRequest: An image cannot be read; the first of several.
            Overloaded: The images are larger than estimated and do not fit, or there was no room
                for the answer before the deadline.
            ServiceError: The deadline passed, the server stops, or a batch failed.
        """
        if not job.images:
            return EncodedImages()
        run = _ImageRun(job=job, model=model, call=call, ticket=ticket)
        started = call.clock()
        try:
            has_run = await run.result.of(partial(self._start, run), self._read_and_submit, run)
            if not has_run:
                started = await self._wait_for_room(run)
                await run.result.of(self._pool.start, self._decode_and_submit, run)
            done = [future.result() for future in run.futures]
        except BaseException as error:
            # In this order, because the pool sets `futures` first and then reads `is_cancelled`.
            run.is_cancelled = True
            _count_failure(run, started, error)
            cancel_all(run.futures)
            raise
        finally:
            # A failed future leads to this frame by its traceback. Without the cycle the images are
            # freed now, and not at the next garbage collection.
            run.futures = ()
        _count_decode(run, started)
        record_batches(done, call)
        if run.answer_bytes and call.answer_memory is None:
            await self._memory.hold(call, run.answer_bytes)
        if run.answer_bytes > TRIMMED_BYTES and self._memory.num_bytes > RELEASED_BYTES:
            await asyncio.to_thread(model.release_idle_memory)  # then the answer is made
        parts = iter(done)
        images = [_encoded(size, islice(parts, n), job.rule) for size, n in run.sizes]
        return EncodedImages(images, run.errors)

    async def _wait_for_room(self, run: _ImageRun) -> float:
        """Wait for capacity and for memory, as a part of the admission."""
        call = run.call
        with call.stage("admit"):
            if run.cost != run.ticket.cost:
                await run.ticket.wait_for(run.cost)
            if any(run.first_bytes):
                run.memory = await self._memory.hold(call, *run.first_bytes)
        return call.clock()

    def _start(self, run: _ImageRun, job: Callable[[], None]) -> None:
        """Start the job of a request on an idle lane if it is small, else in the pool."""
        run.is_on_lane = run.model.is_quiet and run.is_small
        if not (run.is_on_lane and run.model.offer(job)):
            run.is_on_lane = False
            self._pool.start(job)

    def _read_and_submit(self, run: _ImageRun) -> None:
        """Read all headers and correct the admission; then decode and submit. In a thread."""
        if run.is_cancelled or run.call.has_left():
            return  # the client left while this job waited for a thread
        job = run.job
        num_patches: dict[int, int] = {}
        decoding_bytes: list[int] = []
        sizes: list[tuple[int, int]] = []
        for index, image in enumerate(job.images):
            try:
                if isinstance(image, ServiceError):
                    raise image
                size_hw, num_patches[index], num_bytes = self._preparer.measure(
                    image, job.rule, param=_param(index)
                )
                sizes.append(size_hw)
                decoding_bytes.append(num_bytes)
            except ServiceError as error:
                if not job.is_partial:
                    raise
                run.errors[index] = _without_frames(error)
        if len(sizes) > 1 or job.rule.windows is not None:  # `measure` has bounded a single one
            self._preparer.check_pixels(sizes, job.rule)
        if job.check_sizes is not None:
            num_bytes = job.check_sizes(sizes, tuple(num_patches.values()))
            run.answer_bytes = num_bytes if num_bytes > SMALL_ANSWER_BYTES else 0
        run.max_at_once, run.decoding_bytes = self._at_once(decoding_bytes)
        run.readable = tuple(num_patches)
        nominal = len(job.images) * job.rule.nominal_patches
        run.cost = run.ticket.cost - nominal + sum(num_patches.values())
        if run.cost != run.ticket.cost and not run.ticket.resize(run.cost):
            run.result.set(False)  # a stream request, which must wait for more capacity first
        elif not self._has_memory(run):
            run.result.set(False)
        elif run.is_on_lane and sizes and sizes[0][0] * sizes[0][1] > MAX_LANE_PIXELS:
            self._pool.start(partial(run.result.run, self._decode_and_submit, run))
        else:
            self._decode_and_submit(run)

    def _at_once(self, decoding_bytes: Sequence[int]) -> tuple[int, int]:
        """How many images to decode at once, and their bytes: together what one image may take."""
        largest = sorted(decoding_bytes, reverse=True)[: self._pool.num_threads]
        while sum(largest) > self._preparer.max_decoding_bytes and len(largest) > 1:
            largest.pop()
        return len(largest), sum(largest)

    def _has_memory(self, run: _ImageRun) -> bool:
        """Whether the request has its share of the memory, or needs none yet. In a thread."""
        if not any(run.first_bytes):
            return True
        run.memory = self._memory.hold_now(run.call, *run.first_bytes)
        if run.is_cancelled:
            run.call.free_memory()  # it has ended, perhaps before it had this
        return run.memory is not None

    def _decode_and_submit(self, run: _ImageRun) -> None:
        """Decode all images and submit them to the lanes. In a thread."""
        if run.memory is not None and run.memory.num_bytes > TRIMMED_BYTES:
            if self._memory.num_bytes > RELEASED_BYTES:
                run.model.release_idle_memory()
            trim()
        decoding = _Decoding(partial(self._prepare, run), self._pool, deque(run.readable))
        try:
            decoding.run(run.max_at_once)
        finally:
            if run.memory is not None:
                run.memory.decoded()
        if not run.is_cancelled:
            _submit(run, [decoding.images[index] for index in sorted(decoding.images)])

    def _prepare(self, run: _ImageRun, index: int) -> PreparedImage | None:
        """A decoded image; None if it is unreadable, and the others are answered."""
        if run.is_cancelled:
            raise asyncio.CancelledError
        image = run.job.images[index]
        assert not isinstance(image, ServiceError)
        try:
            return self._preparer.prepare(image, run.job.rule, param=_param(index))
        except ServiceError as error:
            if not run.job.is_partial:
                raise _without_frames(error) from None
            run.errors[index] = _without_frames(error)
            return None


@dataclass(slots=True)
class _Decoding:
    """Decodes the images of a request in one thread, which idle threads of the pool help.

    What no other thread has begun the one thread does itself, so that it never waits for a queued
    job: two requests that did would block a small pool for ever.
    """

    prepare: Callable[[int], PreparedImage | None]
    pool: FairPool
    unbegun: deque[int]
    images: dict[int, PreparedImage] = field(default_factory=dict)
    _helpers: list[Future[None]] = field(default_factory=list)
    _failed: dict[int, BaseException] = field(default_factory=dict)

    def run(self, max_at_once: int) -> None:
        """Decode all images; when this returns or raises, no thread decodes one any more.

        Raises:
            BaseException: The first image that `prepare` raised it for; no further one is begun.
        """
        self._helpers += [
            self.pool.submit(self._help) for _ in range(min(max_at_once, len(self.unbegun)) - 1)
        ]
        while self.unbegun:
            self._decode_next()
        for helper in self._helpers:  # one that runs may add its next job
            if not helper.cancel():
                wait([helper])
        try:
            if self._failed:
                raise self._failed[min(self._failed)]
        finally:
            self._failed.clear()  # the frames of an error lead here: a cycle

    def _help(self) -> None:
        """Decode one image. Between two, other flows have their turn."""
        self._decode_next()
        if self.unbegun:
            self._helpers.append(self.pool.submit(self._help))

    def _decode_next(self) -> None:
        try:
            index = self.unbegun.popleft()
        except IndexError:
            return  # another thread took the last one
        try:
            image = self.prepare(index)
            if image is not None:
                self.images[index] = image
        except BaseException as error:
            # All images before this one have been begun, so the first error is among these.
            self._failed[index] = error
            self.unbegun.clear()


def _submit(run: _ImageRun, images: Sequence[PreparedImage]) -> None:
    """Queue all parts of all images at once; the last one wakes the coroutine."""
    rule = run.job.rule
    pixels: list[NDArray[np.float32]] = []
    for image in images:
        _, height, width = image.pixels_3HW.shape
        parts = rule.parts(image.pixels_3HW)
        run.sizes.append(((image.size_hw, (height, width)), len(parts)))
        pixels += parts
    run.submitted = run.call.clock()
    run.futures = run.model.submit_images(pixels, run.call, run.job.kind, run.job.patch_outputs)
    if run.is_cancelled:
        for future in run.futures:
            future.cancel()
    run.result.expect(len(run.futures))
    for future in run.futures:
        future.when_done(run.on_done)
    if not run.futures:
        run.result.set(True)


def _encoded(sizes: Sizes, parts: Iterable[Completed], rule: SizeRule) -> EncodedImage:
    size_hw, scaled_hw = sizes
    height, width = scaled_hw if rule.windows is None else (rule.windows.side, rule.windows.side)
    return EncodedImage(
        parts=tuple(parts),
        grid_hw=(height // rule.patch_size, width // rule.patch_size),
        scaled_hw=scaled_hw,
        size_hw=size_hw,
    )


def _count_decode(run: _ImageRun, started: float) -> None:
    ended = run.call.clock() if run.submitted is None else run.submitted
    run.call.record("decode", started, ended)


def _count_failure(run: _ImageRun, started: float, error: BaseException) -> None:
    """Count the stages before the failure, and images that were abandoned before the queue."""
    _count_decode(run, started)
    is_queued = bool(run.futures) and not any(future.state == "running" for future in run.futures)
    # A batch that failed does not tell how long its items waited.
    if is_queued and run.submitted is not None and not isinstance(error, InternalError):
        run.call.wait("queue", run.call.clock() - run.submitted)
    if isinstance(error, asyncio.CancelledError) and not run.futures:
        run.model.count_abandoned(len(run.job.images), run.call)


def _without_frames(error: ServiceError) -> ServiceError:
    """Drop the traceback: the error stays in the answer, and its frames hold the image."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


@lru_cache(1024)
def _param(index: int) -> str:
    return f"images[{index}]"
