"""One request's pictures on their way through pool and lanes: header, pixels, batch.

Each step starts the next one in the thread that finished it, and the caller's event loop is woken
once, when all is done: on a busy server every wake-up of a loop costs as much as a small model.
Nothing is begun for a caller who has left.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass

from service.call import Call
from service.errors import InternalError
from service.images.preparation import ImagePreparer, PreparedImage, SizeRule
from service.lanes.work import Completed, Kind
from service.messages import Picture
from service.models.admission import Ticket
from service.models.served_model import ServedModel

SizeCheck = Callable[[Sequence[tuple[int, int]]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """What the model says of a picture; its patch rows and columns, its own height and width."""

    completed: Completed
    grid_hw: tuple[int, int]
    size_hw: tuple[int, int]


class ImagePass:
    """Runs once. Made and awaited on an event loop; its steps run in the pool and the lanes.

    Args:
        images: Encoded pictures.
        rule: How large the model sees them.
        model: Which one.
        call: Whose they are.
        kind: What is to be computed of them.
        check_sizes: Refuses pictures by their heights and widths, before any pixel is decoded.
    """

    def __init__(
        self,
        images: Sequence[Picture],
        rule: SizeRule,
        *,
        model: ServedModel,
        call: Call,
        kind: Kind = "image",
        check_sizes: SizeCheck | None = None,
    ) -> None:
        self._images = images
        self._kind: Kind = kind
        self._check_sizes = check_sizes
        self._rule = rule
        self._model = model
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] | None = self._loop.create_future()
        self._lock = threading.Lock()
        self._num_pending = len(images)
        self._failures: dict[int, Exception] = {}
        self._prepared: list[PreparedImage | None] = [None] * len(images)
        self._geometries: list[tuple[tuple[int, int], tuple[int, int]]] = []
        self._futures: list[Future[Completed]] = []
        self._submitted: float | None = None
        self._has_left = False

    async def run(
        self, preparer: ImagePreparer, ticket: Ticket, pool: Executor
    ) -> list[EncodedImage]:
        """Prepare and encode all pictures, in order; of none nothing is done.

        Args:
            preparer: Which reads and scales them.
            ticket: Of the request, whose cost becomes exact before any pixel is decoded.
            pool: Where that is done.

        Raises:
            InvalidRequest: Of several pictures that cannot be read, the first.
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
            # An error leads to this frame, which must not lead back: no circle holds pictures.
            self._woken = woken = None
            self._failures = {}
            self._images = ()
        done = [future.result() for future in self._futures]
        self._count_stages(started, done)
        return [
            EncodedImage(completed=completed, grid_hw=grid_hw, size_hw=size_hw)
            for completed, (grid_hw, size_hw) in zip(done, self._geometries, strict=True)
        ]

    def _measure(self, preparer: ImagePreparer, ticket: Ticket, pool: Executor) -> None:
        """All headers first; then one job for each picture, of which this thread does one."""
        if self._is_over():
            return
        try:
            num_patches = sum(
                preparer.num_patches(data, self._rule, param=_param(index))
                for index, data in enumerate(self._images)
            )
            if self._check_sizes is not None:
                self._check_sizes(
                    [preparer.size_hw(d, param=_param(i)) for i, d in enumerate(self._images)]
                )
            nominal = len(self._images) * self._rule.nominal_patches
            with self._lock:
                if self._is_over():  # and so is the ticket
                    return
                ticket.resize(ticket.cost - nominal + num_patches)
            for index in range(1, len(self._images)):
                pool.submit(self._prepare, index, preparer)
        except Exception as error:
            self._wake(error)
            return
        self._prepare(0, preparer)

    def _prepare(self, index: int, preparer: ImagePreparer) -> None:
        if not self._is_over():
            try:
                data = self._images[index]
                self._prepared[index] = preparer.prepare(data, self._rule, param=_param(index))
            except Exception as error:
                self._failures[index] = error
        with self._lock:
            self._num_pending -= 1
            is_last = self._num_pending == 0
        if is_last:
            self._submit()

    def _submit(self) -> None:
        """Queue all pictures together, unless one cannot be read or nobody waits any more."""
        if self._failures:
            self._wake(self._failures[min(self._failures)])
            return
        try:
            with self._lock:
                if self._is_over():
                    return
                self._num_pending = len(self._images)
                ready = [image for image in self._prepared if image is not None]
                self._geometries = [(self._grid(image), image.size_hw) for image in ready]
                pixels = [image.pixels_3HW for image in ready]
                self._prepared = []  # from here on the queue alone holds their pixels
                self._submitted = self._call.clock()
                self._futures = self._model.submit_images(pixels, self._call, self._kind)
        except Exception as error:
            self._wake(error)
            return
        for future in self._futures:
            future.add_done_callback(self._finish)

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

    def _grid(self, image: PreparedImage) -> tuple[int, int]:
        _, height, width = image.pixels_3HW.shape
        return height // self._rule.patch_size, width // self._rule.patch_size

    def _count_stages(self, started: float, done: Sequence[Completed]) -> None:
        """Pictures run side by side: the slowest is what the caller waited for."""
        self._count_decode(started)
        self._call.wait("queue", max(d.queue_s for d in done))
        self._call.wait("run", max(d.run_s for d in done))
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


def _param(index: int) -> str:
    return f"images[{index}]"
