"""The images of one request: read headers, decode, queue, run. Admission is between the first two.

An image whose outputs are in the cache skips all but the first step.

Each step is awaited on the caller's event loop. The pool reads headers and decodes; the lanes run.
"""

import asyncio
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.graphs import PatchOutput
from model.runtime.machine import trim
from service.admission import Admission
from service.call import Call
from service.errors import InternalError, ServiceError
from service.images import ImagePreparer, PreparedImage, SizeRule
from service.lanes.work import (
    Bucket,
    Completed,
    Kind,
    WorkItem,
    record_batches,
    wait_settled,
)
from service.messages import MaybeImage
from service.models.image_cache import EncodedImage, ImageCache, ImageKey
from service.models.served_model import ServedModel
from service.waiting import Pool, cancel_all, run_in_pool

# A request that takes more memory has the heap trimmed first: after other large requests, threads
# held up to 42 MiB of free pages, in pieces that a large image cannot use.
TRIMMED_BYTES: Final = 16 * 2**20
# While requests take more than this together, the cache keeps nothing; and before a large image is
# decoded or a large answer is made, runtimes free what they keep for later batches. Each time costs
# some 25 ms of CPU time with the next batch; a PNG of 25 megapixels takes 500.
RELEASED_BYTES: Final = 96 * 2**20
# To digest so many bytes takes as long as to hand the work to a thread.
INLINE_BYTES: Final = 128 * 1024
# An image at one size: the index of the image, and that of the size.
View = tuple[int, int]


# What is made for every request is not frozen: that doubles the time to make it.
@dataclass(slots=True, kw_only=True)
class ImageJob:
    """The images of a request, and what to compute for them.

    Attributes:
        images: Encoded images or pixels, or why there is none.
        rules: The sizes at which the model sees them, the usual one first.
        kind: Which outputs are computed.
        patch_outputs: Which of the patch outputs are needed.
        is_partial: Whether an unreadable image leaves the other images their answers.
        has_guide: Whether maps follow the colours of the images; see `model.outlines`.
    """

    images: Sequence[MaybeImage]
    rules: Sequence[SizeRule]
    kind: Kind = "image"
    patch_outputs: Collection[PatchOutput] = ()
    is_partial: bool = False
    has_guide: bool = False

    @property
    def rule(self) -> SizeRule:
        """The usual size."""
        return self.rules[0]


@dataclass(slots=True)
class MeasuredImages:
    """What the headers say of the images that can be read.

    Attributes:
        indices: Of the images in the request.
        sizes_hw: Height and width of each.
        num_patches: Patches of each at the usual size.
        num_queued_patches: Patches that the lanes compute.
        num_at_once: How many to decode at once.
        num_bytes: Memory that so many take while they are decoded; 0 if they are small.
        errors: Why others cannot be read, by index.
        cached: What needs no work, by the index of the image and that of the size.
        keys: Of the rest that the cache keeps, likewise.
        missing: Indices of the sizes that an image is decoded for, by its index.
    """

    indices: list[int] = field(default_factory=list)
    sizes_hw: list[tuple[int, int]] = field(default_factory=list)
    num_patches: list[int] = field(default_factory=list)
    num_queued_patches: int = 0
    num_at_once: int = 1
    num_bytes: int = 0
    errors: dict[int, ServiceError] = field(default_factory=dict)
    cached: dict[View, EncodedImage] = field(default_factory=dict)
    keys: dict[View, ImageKey] = field(default_factory=dict)
    missing: dict[int, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class EncodedImages:
    """The images that could be read, in order, at each size; errors of the others by index."""

    sizes: Sequence[Sequence[EncodedImage]]
    errors: dict[int, ServiceError]

    @property
    def images(self) -> Sequence[EncodedImage]:
        """The images at the usual size."""
        return self.sizes[0]


class ImagePipeline:
    """Runs the images of requests through the pool and the lanes; from any event loop."""

    def __init__(
        self, preparer: ImagePreparer, pool: Pool, admission: Admission, cache: ImageCache
    ) -> None:
        self._preparer = preparer
        self._pool = pool
        self._admission = admission
        self._cache = cache

    def finer(self, rule: SizeRule, max_resolution: int) -> SizeRule:
        """The second size of `quality` `fine`; see `SizeRule.finer`."""
        return rule.finer(max_resolution, self._preparer.max_patches(rule))

    async def measure(self, job: ImageJob, model: ServedModel, call: Call) -> MeasuredImages:
        """Look all images up in the cache, and read the headers of the others.

        Raises:
            InvalidRequest: An image cannot be read or is too large; the first of several.
            RequestTooLarge: All images together have too many pixels.
        """
        if not job.images:
            return MeasuredImages()
        with call.stage("decode"):
            look_up = partial(self._look_up, job, model, call.key_digest)
            num_bytes = sum([len(image) for image in job.images if isinstance(image, bytes)])
            if num_bytes <= INLINE_BYTES:
                measured = look_up()
            else:
                (measured,) = await run_in_pool(self._pool, [look_up])
            measure = partial(self._measure, job, measured)
            if measured.missing:
                await run_in_pool(self._pool, [measure])
            else:
                measure()
            call.sizes_hw = measured.sizes_hw
            call.is_cached = len(measured.cached) == len(job.images) * len(job.rules)
            return measured

    async def run(
        self, job: ImageJob, measured: MeasuredImages, model: ServedModel, call: Call
    ) -> EncodedImages:
        """Decode and encode all images that can be read, once the request has taken its memory.

        Raises:
            InvalidRequest: An image is broken; the first of several.
            ServiceError: The server stops, or a batch failed.
        """
        try:
            with call.stage("decode"):
                images = await self._decode(job, measured, model)
        except asyncio.CancelledError:
            model.queue.count_abandoned(len(job.images), call.deadline)
            raise
        parts = {view: job.rules[view[1]].parts(i.pixels_3HW) for view, i in images.items()}
        done: Iterator[Completed] = iter(())
        if parts:
            inputs = [part for pixels in parts.values() for part in pixels]
            done = iter(await _run(inputs, job, model, call))
        encoded = dict(measured.cached)
        for view, image in images.items():
            new = _encoded(image, islice(done, len(parts[view])), job.rules[view[1]])
            is_kept = view in measured.keys and not self._is_short_of_memory
            encoded[view] = self._cache.keep(measured.keys[view], new) if is_kept else new
        readable = [index for index in measured.indices if index not in measured.errors]
        sizes = [[encoded[index, k] for index in readable] for k in range(len(job.rules))]
        return EncodedImages(sizes, measured.errors)

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

    def _look_up(self, job: ImageJob, model: ServedModel, owner: bytes) -> MeasuredImages:
        """Find what is cached, and what is missing."""
        measured = MeasuredImages()
        for index, image in enumerate(job.images):
            key = self._cache.key(image, job.rule, model, owner) if job.kind == "image" else None
            missing = []
            for k, rule in enumerate(job.rules):
                own_key = None if key is None else key._replace(rule=rule)
                found = own_key and self._cache.find(
                    own_key, job.patch_outputs, has_guide=job.has_guide
                )
                if found is not None:
                    measured.cached[index, k] = found
                    continue
                missing.append(k)
                if own_key is not None:
                    measured.keys[index, k] = own_key
            if missing:
                measured.missing[index] = missing
        return measured

    def _measure(self, job: ImageJob, measured: MeasuredImages) -> None:
        """Read the headers of images that are not cached."""
        decoding_bytes: list[int] = []
        for index, image in enumerate(job.images):
            missing = measured.missing.get(index)
            try:
                if missing is None:
                    found = measured.cached[index, 0]
                    size_hw, counts = found.size_hw, [math.prod(found.grid_hw)]
                else:
                    if isinstance(image, ServiceError):
                        raise image
                    size_hw, counts, num_bytes = self._preparer.measure(
                        image, job.rules, param=_param(index)
                    )
                    measured.num_queued_patches += sum([counts[k] for k in missing])
                    decoding_bytes.append(num_bytes)
            except ServiceError as error:
                if not job.is_partial:
                    raise
                del measured.missing[index]
                measured.errors[index] = _without_frames(error)
                continue
            measured.indices.append(index)
            measured.sizes_hw.append(size_hw)
            measured.num_patches.append(counts[0])
        if len(measured.indices) > 1 or job.rule.windows is not None:
            self._preparer.check_pixels(measured.sizes_hw, job.rules)
        # Together the images that are decoded at once take what one image may take.
        largest = sorted(decoding_bytes, reverse=True)[: self._pool.num_threads]
        while sum(largest) > self._preparer.max_decoding_bytes and len(largest) > 1:
            largest.pop()
        measured.num_at_once, measured.num_bytes = max(1, len(largest)), sum(largest)

    async def _decode(
        self, job: ImageJob, measured: MeasuredImages, model: ServedModel
    ) -> dict[View, PreparedImage]:
        """What is not cached; `measured` gets the errors of broken images."""
        await self.make_room(measured.num_bytes, model)
        images: dict[View, PreparedImage] = {}
        needed = list(measured.missing)
        for start in range(0, len(needed), measured.num_at_once):
            indices = needed[start : start + measured.num_at_once]
            jobs = [
                partial(self._prepare, job, index, measured.missing[index]) for index in indices
            ]
            for index, found in zip(indices, await run_in_pool(self._pool, jobs), strict=True):
                if isinstance(found, ServiceError):
                    measured.errors[index] = found
                else:
                    views = [(index, k) for k in measured.missing[index]]
                    images.update(zip(views, found, strict=True))
        return images

    def _prepare(
        self, job: ImageJob, index: int, sizes: Sequence[int]
    ) -> list[PreparedImage] | ServiceError:
        image = job.images[index]
        assert not isinstance(image, ServiceError)
        try:
            return self._preparer.prepare(
                image,
                [job.rules[k] for k in sizes],
                param=_param(index),
                has_guide=job.has_guide,
            )
        except ServiceError as error:
            if not job.is_partial:
                raise
            return _without_frames(error)


async def _run(
    pixels: Sequence[NDArray[np.float32]], job: ImageJob, model: ServedModel, call: Call
) -> list[Completed]:
    """Queue all parts of all images at once, and wait for their outputs."""
    items = [
        WorkItem(
            bucket=Bucket(job.kind, p.shape[1:]),
            cost=p.shape[1] * p.shape[2] // model.manifest.patch_size**2,
            payload=p,
            patch_outputs=job.patch_outputs,
            deadline=call.deadline,
            priority=call.priority,
            caller=call.caller,
        )
        for p in pixels
    ]
    queued = call.clock()
    futures = model.queue.put(items)
    try:
        await wait_settled(futures)
        done = [future.result() for future in futures]
    except BaseException as error:
        # A batch that failed does not tell how long its items waited.
        is_running = any(future.state == "running" for future in futures)
        if not is_running and not isinstance(error, InternalError):
            call.wait("queue", call.clock() - queued)
            call.trace.stage("queue", queued, call.clock())
        cancel_all(futures)
        raise
    finally:
        futures.clear()  # a failed one leads to this frame by its traceback
    record_batches(done, call)
    return done


def _encoded(image: PreparedImage, parts: Iterable[Completed], rule: SizeRule) -> EncodedImage:
    _, *scaled_hw = image.pixels_3HW.shape
    height, width = scaled_hw if rule.windows is None else (rule.windows.side, rule.windows.side)
    return EncodedImage(
        parts=tuple(parts),
        grid_hw=(height // rule.patch_size, width // rule.patch_size),
        scaled_hw=(scaled_hw[0], scaled_hw[1]),
        size_hw=image.size_hw,
        guide_3YX=image.guide_3YX,
    )


def _without_frames(error: ServiceError) -> ServiceError:
    """Drop the traceback: the error stays in the answer, and its frames hold the image."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


@lru_cache(1024)
def _param(index: int) -> str:
    return f"images[{index}]"
