"""The images of one request: read headers, decode, queue, run. Admission is between the first two.

An image whose outputs are in the cache skips all but the first step.

Each step is awaited on the caller's event loop. The pool reads headers and decodes; the lanes run.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar

from numpy.typing import NDArray

from model.graphs import PatchOutput
from model.runtime.machine import trim
from service.admission import Admission
from service.call import Call
from service.errors import InternalError, ServiceError
from service.images import ImagePreparer, PreparedImage, SizeRule
from service.lanes.work import Bucket, Completed, ItemFuture, Kind, WorkItem, record_batches
from service.messages import MaybeImage
from service.models.image_cache import EncodedImage, ImageCache, ImageKey
from service.models.served_model import ServedModel
from service.waiting import (
    Pool,
    Settled,
    cancel_all,
    results,
    results_of,
    run_in_pool,
    stop,
)

T = TypeVar("T")
# A request that takes more memory has the heap trimmed first: after other large requests, threads
# held up to 42 MiB of free pages, in pieces that a large image cannot use.
TRIMMED_BYTES: Final = 16 * 2**20
# While requests take more than this together, the cache keeps nothing; and before a large image is
# decoded or a large answer is made, runtimes free what they keep for later batches. Each time costs
# some 25 ms of CPU time with the next batch; a PNG of 25 megapixels takes 500.
RELEASED_BYTES: Final = 96 * 2**20
# Files of so many bytes together are digested and measured at once: handing that to a thread takes
# as long.
INLINE_BYTES: Final = 128 * 1024


# What is made for every request is not frozen: that doubles the time to make it.
@dataclass(slots=True, kw_only=True, eq=False)
class RequestImage:
    """An image of a request that can be read.

    Attributes:
        index: In the request.
        size_hw: Height and width.
        num_patches: At each size; of a cached image only the first is right.
        encoded: Its outputs at each size; None until they are known.
        missing: Indices of the sizes that are not cached.
        key: Of the usual size; None if the cache does not keep it.
        decoding_bytes: Memory for decoding it; 0 if that is little.
    """

    index: int
    size_hw: tuple[int, int]
    num_patches: Sequence[int]
    encoded: list[EncodedImage | None]
    missing: list[int]
    key: ImageKey | None
    decoding_bytes: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class ImageJob:
    """The images of a request: what to compute for them, and what is known of them.

    Attributes:
        given: Encoded images or pixels, or why there is none.
        rules: The sizes at which the model sees them, the usual one first.
        kind: Which outputs are computed.
        patch_outputs: Which of the patch outputs are needed.
        is_partial: Whether an unreadable image leaves the other images their answers.
        has_guide: Whether maps follow the colours of the images; see `model.outlines`.
        images: Those that can be read, in order; from `measure` on.
        errors: Why others cannot, by index.
        num_at_once: How many to decode at once.
        num_bytes: Memory that so many take while they are decoded; 0 if they are small.
    """

    given: Sequence[MaybeImage]
    rules: Sequence[SizeRule]
    kind: Kind = "image"
    patch_outputs: Collection[PatchOutput] = ()
    is_partial: bool = False
    has_guide: bool = False
    images: list[RequestImage] = field(default_factory=list)
    errors: dict[int, ServiceError] = field(default_factory=dict)
    num_at_once: int = 1
    num_bytes: int = 0

    @property
    def rule(self) -> SizeRule:
        """The usual size."""
        return self.rules[0]

    @property
    def sizes_hw(self) -> list[tuple[int, int]]:
        """Height and width of each image."""
        return [image.size_hw for image in self.images]

    @property
    def num_queued_patches(self) -> int:
        """Patches that the lanes compute."""
        return sum([image.num_patches[k] for image in self.images for k in image.missing])

    @property
    def num_parts(self) -> int:
        """Parts that lanes can compute at the same time; an upper bound with windows."""
        if self.rule.windows is not None:
            return self.num_queued_patches
        return sum([len(image.missing) for image in self.images])

    def encoded(self, k: int = 0) -> list[EncodedImage]:
        """The images at one size, the usual one by default."""
        return [found for image in self.images if (found := image.encoded[k]) is not None]


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """What the coroutine of a request shares with the threads that decode its images.

    Attributes:
        needed: The images that are decoded.
        found: Their pixels at each missing size, or why they cannot be read, by index.
        futures: Of all parts of all images, once they are queued.
        decoded: Monotonic seconds of then.
    """

    job: ImageJob
    model: ServedModel
    call: Call
    started: float
    needed: Sequence[RequestImage]
    settled: Settled = field(default_factory=Settled)
    lock: threading.Lock = field(default_factory=threading.Lock)
    found: dict[int, list[PreparedImage] | ServiceError] = field(default_factory=dict)
    futures: Sequence[ItemFuture] = ()
    decoded: float = 0.0


class ImagePipeline:
    """Runs the images of requests through the pool and the lanes; from any event loop."""

    def __init__(
        self, preparer: ImagePreparer, pool: Pool, admission: Admission, cache: ImageCache
    ) -> None:
        self._preparer = preparer
        self._pool = pool
        self._admission = admission
        self._cache = cache

    async def measure(self, job: ImageJob, model: ServedModel, call: Call) -> None:
        """Look all images up in the cache, and read the headers of the others.

        Raises:
            InvalidRequest: An image cannot be read or is too large; the first of several.
            RequestTooLarge: All images together have too many pixels.
        """
        if not job.given:
            return
        measure = partial(self._measure, job, model, call.key_digest)
        with call.stage("decode"):
            if sum([len(image) for image in job.given if isinstance(image, bytes)]) <= INLINE_BYTES:
                # Of a crowd that has sent and left, the event loop sees now who has left.
                await asyncio.sleep(0)
                measure()
            else:
                await run_in_pool(self._pool, [measure])
        call.sizes_hw = job.sizes_hw
        call.is_cached = not job.errors and not any(image.missing for image in job.images)

    async def run(self, job: ImageJob, model: ServedModel, call: Call) -> None:
        """Decode and encode all images that can be read, once the request has taken its memory.

        The thread that decodes an image queues it too, so the event loop is woken once, at the end.

        Raises:
            InvalidRequest: An image is broken; the first of several.
            ServiceError: The server stops, or a batch failed.
        """
        needed = [image for image in job.images if image.missing]
        run = _Run(job=job, model=model, call=call, started=call.clock(), needed=needed)
        decoding: list[Future[None]] = []
        try:
            await self.make_room(job.num_bytes, model)
            for begin in range(0, len(needed), job.num_at_once):
                await results_of(decoding)
                images = needed[begin : begin + job.num_at_once]
                decoding += [self._pool.submit(self._decode, run, image) for image in images]
            run.settled.add(decoding)
            await run.settled.wait()
            if not run.futures:  # an image is broken, or none can be read
                await results_of(decoding)
            done = results(run.futures)
        except BaseException as error:
            await stop(decoding)
            _count_failure(run, error)
            cancel_all(run.futures)
            raise
        finally:
            # An error leads to this frame by its traceback: nothing here may lead to the error.
            decoding, run.futures = [], ()
        if done:
            call.record("decode", run.started, run.decoded)
            record_batches(done, call)
        self._keep(run, iter(done))

    def _decode(self, run: _Run, image: RequestImage) -> None:
        """Decode an image in a thread of the pool; the last one queues all."""
        found = _attempt(run.job, partial(self._prepare, run.job, image))
        with run.lock:
            run.found[image.index] = found
            is_last = len(run.found) == len(run.needed)
        if is_last:
            _queue(run)

    def _prepare(self, job: ImageJob, image: RequestImage) -> list[PreparedImage]:
        pixels = job.given[image.index]
        assert not isinstance(pixels, ServiceError)
        return self._preparer.prepare(
            pixels,
            [job.rules[k] for k in image.missing],
            param=f"images[{image.index}]",
            has_guide=job.has_guide,
        )

    def _keep(self, run: _Run, done: Iterator[Completed]) -> None:
        """Give each image its outputs, and the cache those that it keeps."""
        job = run.job
        for image in run.needed:
            found = run.found[image.index]
            if isinstance(found, ServiceError):
                job.errors[image.index] = found
                job.images.remove(image)
                continue
            for k, prepared in zip(image.missing, found, strict=True):
                new = _encoded(prepared, done, job.rules[k])
                if image.key is not None and not self._is_short_of_memory:
                    new = self._cache.keep(image.key._replace(rule=job.rules[k]), new)
                image.encoded[k] = new

    async def make_room(self, num_bytes: int, model: ServedModel) -> None:
        """Free what heap, cache and runtimes keep, before work that takes so many bytes."""
        if self._is_short_of_memory:
            self._cache.drop()
        if num_bytes > TRIMMED_BYTES:
            await run_in_pool(self._pool, [partial(self._make_room, model)])

    @property
    def _is_short_of_memory(self) -> bool:
        return self._admission.num_work_bytes > RELEASED_BYTES

    def _make_room(self, model: ServedModel) -> None:
        if self._is_short_of_memory:
            model.release_idle_memory()
        trim()

    def _measure(self, job: ImageJob, model: ServedModel, owner: bytes) -> None:
        for index in range(len(job.given)):
            found = _attempt(job, partial(self._measure_one, job, index, model, owner))
            if isinstance(found, ServiceError):
                job.errors[index] = found
            else:
                job.images.append(found)
        if len(job.images) > 1 or job.rule.windows is not None:
            self._preparer.check_pixels(job.sizes_hw, job.rules)
        # Together the images that are decoded at once take what one image may take.
        largest = sorted((i.decoding_bytes for i in job.images if i.missing), reverse=True)
        del largest[self._pool.num_threads :]
        while sum(largest) > self._preparer.max_decoding_bytes and len(largest) > 1:
            largest.pop()
        job.num_at_once, job.num_bytes = max(1, len(largest)), sum(largest)

    def _measure_one(
        self, job: ImageJob, index: int, model: ServedModel, owner: bytes
    ) -> RequestImage:
        image = job.given[index]
        key = self._cache.key(image, job.rule, model, owner) if job.kind == "image" else None
        found = [
            key
            and self._cache.find(
                key._replace(rule=rule), job.patch_outputs, has_guide=job.has_guide
            )
            for rule in job.rules
        ]
        known, missing, num_bytes = found[0], [k for k, f in enumerate(found) if f is None], 0
        if known is not None and not missing:
            size_hw, counts = known.size_hw, [math.prod(known.grid_hw)]
        elif isinstance(image, ServiceError):
            raise image
        else:
            param = f"images[{index}]"
            size_hw, counts, num_bytes = self._preparer.measure(image, job.rules, param=param)
        return RequestImage(
            index=index,
            size_hw=size_hw,
            num_patches=counts,
            encoded=found,
            missing=missing,
            key=key,
            decoding_bytes=num_bytes,
        )


def _attempt(job: ImageJob, work: Callable[[], T]) -> T | ServiceError:
    """Do some work for an image; in a partial request its error is a result.

    The error stays in the answer, so it drops the frames that hold the image.
    """
    try:
        return work()
    except ServiceError as error:
        if not job.is_partial:
            raise
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)


def _queue(run: _Run) -> None:
    """Queue all parts of all images at once."""
    job, model, call = run.job, run.model, run.call
    parts: list[NDArray[Any]] = []
    for image in run.needed:
        found = run.found[image.index]
        if not isinstance(found, ServiceError):
            for k, prepared in zip(image.missing, found, strict=True):
                parts += job.rules[k].parts(prepared.pixels_3HW)
    run.decoded = call.clock()
    run.futures = model.queue.put(
        [
            WorkItem(
                bucket=Bucket(job.kind, p.shape[1:]),
                cost=p.shape[1] * p.shape[2] // model.manifest.patch_size**2,
                payload=p,
                patch_outputs=job.patch_outputs,
                deadline=call.deadline,
                priority=call.priority,
                caller=call.caller,
            )
            for p in parts
        ]
    )
    run.settled.add(run.futures)


def _count_failure(run: _Run, error: BaseException) -> None:
    """Record the stages before a failure, and the images that a caller left before the queue."""
    call, now, is_queued = run.call, run.call.clock(), bool(run.futures)
    call.record("decode", run.started, run.decoded if is_queued else now)
    if isinstance(error, asyncio.CancelledError) and not is_queued:
        run.model.queue.count_abandoned(len(run.needed), call.deadline)
    is_running = any(future.running() for future in run.futures)
    # A batch that failed does not tell how long its items waited.
    if is_queued and not is_running and not isinstance(error, InternalError):
        call.wait("queue", now - run.decoded)
        call.trace.stage("queue", run.decoded, now)


def _encoded(image: PreparedImage, done: Iterator[Completed], rule: SizeRule) -> EncodedImage:
    """An image with the next outputs, one for each of its parts."""
    _, *(height, width) = image.pixels_3HW.shape
    part_hw, num_parts = (height, width), 1
    if rule.windows is not None:
        part_hw, num_parts = (rule.windows.side,) * 2, rule.windows.count((height, width))
    return EncodedImage(
        parts=tuple(part.outputs for part in islice(done, num_parts)),
        grid_hw=(part_hw[0] // rule.patch_size, part_hw[1] // rule.patch_size),
        scaled_hw=(height, width),
        size_hw=image.size_hw,
        guide_3YX=image.guide_3YX,
    )
