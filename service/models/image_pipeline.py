"""The images of one request through decoding, preparation and the batcher."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from service.call import Call
from service.errors import InternalError, ServiceError
from service.images import ImagePreparer, PreparedImage, SizeRule
from service.lanes.work import Completed, Kind, Outputs
from service.messages import MaybeImage
from service.models.admission import Ticket
from service.models.served_model import ServedModel

SizeCheck = Callable[[Sequence[tuple[int, int]]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """What the model says of an image.

    Attributes:
        parts: The image's, or each window's.
        grid_hw: Patch rows and columns of a part.
        scaled_hw: Height and width to which the image was scaled, in pixels.
        size_hw: Its own height and width, in pixels.
    """

    parts: tuple[Completed, ...]
    grid_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    size_hw: tuple[int, int]

    @property
    def outputs(self) -> Outputs:
        """Of the only part."""
        (completed,) = self.parts
        return completed.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class PassOptions:
    """What is to be done with images.

    Attributes:
        kind: What is to be computed of them.
        check_sizes: Refuses images by their heights and widths, before any pixel is decoded.
        is_partial: Whether those that cannot be read leave the others their answers.
    """

    kind: Kind = "image"
    check_sizes: SizeCheck | None = None
    is_partial: bool = False


PLAIN = PassOptions()


class ImagePass:
    """Runs once. Made and awaited on an event loop; its steps run in the pool and the lanes.

    Args:
        images: Encoded images.
        rule: How large the model sees them.
        model: Which one.
        call: Whose they are.
        options: What is to be done with them.

    Attributes:
        errors: What is wrong with single images, once it has run; only where it is partial.
    """

    def __init__(
        self,
        images: Sequence[MaybeImage],
        rule: SizeRule,
        *,
        model: ServedModel,
        call: Call,
        options: PassOptions = PLAIN,
    ) -> None:
        self.errors: dict[int, ServiceError] = {}
        self._images = images
        self._options = options
        self._rule = rule
        self._model = model
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] | None = self._loop.create_future()
        self._lock = threading.Lock()
        self._num_pending = 0
        self._failures: dict[int, Exception] = {}
        self._prepared: list[PreparedImage | None] = [None] * len(images)
        self._sent: list[_Sent] = []
        self._futures: list[Future[Completed]] = []
        self._submitted: float | None = None
        self._has_left = False

    async def run(
        self, preparer: ImagePreparer, ticket: Ticket, pool: Executor
    ) -> list[EncodedImage]:
        """Prepare and encode all images, in order; where it is partial, all that can be read.

        Args:
            preparer: Which reads and scales them.
            ticket: Of the request, whose cost becomes exact before any pixel is decoded.
            pool: Where that is done.

        Raises:
            InvalidRequest: Of several images that cannot be read, the first.
            ServiceError: The deadline passed, the server stops, or a batch failed.
        """
        if not self._images:
            return []
        started = self._call.clock()
        woken = self._woken
        assert woken is not None
        pool.submit(self._measure, preparer, ticket, pool)
        try:
            await woken
        except BaseException as error:
            self._count_failure(started, error)
            self._leave(is_abandoned=isinstance(error, asyncio.CancelledError))
            raise
        finally:
            # An error leads to this frame, which must not lead back: no circle holds images.
            self._woken = woken = None
            failures, self._failures = self._failures, {}
            self._images = ()
        self.errors = {i: _bare(e) for i, e in failures.items() if isinstance(e, ServiceError)}
        done = [future.result() for future in self._futures]
        self._count_stages(started, done)
        parts = iter(done)
        return [
            EncodedImage(
                parts=tuple(islice(parts, sent.num_parts)),
                grid_hw=sent.grid_hw,
                scaled_hw=sent.scaled_hw,
                size_hw=sent.size_hw,
            )
            for sent in self._sent
        ]

    def _measure(self, preparer: ImagePreparer, ticket: Ticket, pool: Executor) -> None:
        """All headers first; then one job for each image, of which this thread does one."""
        if self._is_over():
            return
        try:
            readable = self._read_headers(preparer)
            nominal = len(self._images) * self._rule.nominal_patches
            with self._lock:
                if self._is_over():  # and so is the ticket
                    return
                ticket.resize(ticket.cost - nominal + sum(readable.values()))
                self._num_pending = len(readable)
            for index in list(readable)[1:]:
                pool.submit(self._prepare, index, preparer)
        except Exception as error:
            self._wake(error)
            return
        if readable:
            self._prepare(min(readable), preparer)
        else:  # each has its error
            self._wake(None)

    def _read_headers(self, preparer: ImagePreparer) -> dict[int, int]:
        """Patches of each image, by its index."""
        readable: dict[int, int] = {}
        sizes: list[tuple[int, int]] = []
        for index, data in enumerate(self._images):
            try:
                if isinstance(data, ServiceError):
                    raise data
                readable[index] = preparer.num_patches(data, self._rule, param=_param(index))
                if self._options.check_sizes is not None:
                    sizes.append(preparer.size_hw(data, param=_param(index)))
            except ServiceError as error:
                if not self._options.is_partial:
                    raise
                self._failures[index] = error
        if self._options.check_sizes is not None:
            self._options.check_sizes(sizes)
        return readable

    def _prepare(self, index: int, preparer: ImagePreparer) -> None:
        if not self._is_over():
            try:
                data = self._images[index]
                assert not isinstance(data, ServiceError)
                self._prepared[index] = preparer.prepare(data, self._rule, param=_param(index))
            except Exception as error:
                self._failures[index] = error
        with self._lock:
            self._num_pending -= 1
            is_last = self._num_pending == 0
        if is_last:
            self._submit()

    def _submit(self) -> None:
        """Queue all images together, unless one cannot be read or nobody waits any more."""
        fatal = [i for i, error in self._failures.items() if not self._is_forgiven(error)]
        if fatal:
            self._wake(self._failures[min(fatal)])
            return
        try:
            with self._lock:
                if self._is_over():
                    return
                ready = [image for image in self._prepared if image is not None]
                cut = [self._rule.parts(image.pixels_3HW) for image in ready]
                self._sent = list(map(self._note, ready, cut))
                pixels = [part for parts in cut for part in parts]
                self._num_pending = len(pixels)
                self._prepared, cut = [], []  # from here on the queue alone holds their pixels
                self._submitted = self._call.clock()
                kind = self._options.kind
                self._futures = self._model.submit_images(pixels, self._call, kind)
        except Exception as error:
            self._wake(error)
            return
        if not self._futures:  # none could be read
            self._wake(None)
        for future in self._futures:
            future.add_done_callback(self._finish)

    def _is_forgiven(self, error: Exception) -> bool:
        return self._options.is_partial and isinstance(error, ServiceError)

    def _finish(self, future: "Future[Completed]") -> None:
        if future.cancelled():
            return
        with self._lock:
            self._num_pending -= 1
            is_last = self._num_pending == 0
        error = future.exception()
        if error is not None or is_last:
            self._wake(error)

    def _wake(self, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self._loop.call_soon_threadsafe(self._settle, error)

    def _settle(self, error: BaseException | None) -> None:
        woken = self._woken
        if woken is None or woken.done():
            return
        if error is None:
            woken.set_result(None)
        else:
            woken.set_exception(error)

    def _is_over(self) -> bool:
        """Whether nobody waits any more."""
        return self._has_left

    def _leave(self, *, is_abandoned: bool) -> None:
        with self._lock:
            self._has_left = True
            futures = self._futures
        if is_abandoned and not futures:
            self._model.count_abandoned(len(self._images), self._call)
        for future in futures:
            future.cancel()

    def _note(self, image: PreparedImage, parts: Sequence[NDArray[np.float32]]) -> "_Sent":
        """What is to be known of an image once its pixels are gone."""
        _, height, width = parts[0].shape
        patch_size = self._rule.patch_size
        return _Sent(
            num_parts=len(parts),
            grid_hw=(height // patch_size, width // patch_size),
            scaled_hw=(image.pixels_3HW.shape[1], image.pixels_3HW.shape[2]),
            size_hw=image.size_hw,
        )

    def _count_stages(self, started: float, done: Sequence[Completed]) -> None:
        """Images run side by side: the slowest is what the caller waited for."""
        self._count_decode(started)
        self._call.wait("queue", max((d.queue_s for d in done), default=0.0))
        self._call.wait("run", max((d.run_s for d in done), default=0.0))
        for batch in {d.batch for d in done}:
            self._call.trace.ran_in(batch)

    def _count_failure(self, started: float, error: BaseException) -> None:
        """What came before a failure counts; a batch that failed does not say how long it ran."""
        submitted = self._count_decode(started)
        is_running = any(future.running() for future in self._futures)
        if submitted is not None and not is_running and not isinstance(error, InternalError):
            self._call.wait("queue", self._call.clock() - submitted)

    def _count_decode(self, started: float) -> float | None:
        with self._lock:
            submitted = self._submitted
        ended = self._call.clock() if submitted is None else submitted
        self._call.add("decode", ended - started)
        self._call.trace.stage("decode", started, ended)
        return submitted


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    num_parts: int
    grid_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    size_hw: tuple[int, int]


def _bare(error: ServiceError) -> ServiceError:
    """An error that leads to no frame, and so to no image, for it stays with the answer."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def _param(index: int) -> str:
    return f"images[{index}]"
