"""What one model has done since it was loaded: requests, their items, and where their time went."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from service.call import Call, Stage

NS_PER_S: Final = 1_000_000_000
STAGES: Final[tuple[Stage, ...]] = ("decode", "queue", "run", "post")


@dataclass(frozen=True, slots=True)
class Total:
    """How often something was done, and for how long in all."""

    count: int = 0
    ns: int = 0

    def plus(self, seconds: float) -> "Total":
        """After once more."""
        return Total(self.count + 1, self.ns + round(seconds * NS_PER_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """One model's numbers at a moment.

    Attributes:
        name: Of the model.
        last_ms: When it was last asked, in milliseconds since the epoch; 0 where it never was.
        num_items: Images and texts of requests that were answered.
        success: Requests that were answered.
        fail: Requests that were let in and not answered.
        stages: Of requests that were answered, by stage.
        batches: By number of items.
    """

    name: str
    last_ms: int
    num_items: int
    success: Total
    fail: Total
    stages: Mapping[Stage, Total]
    batches: Mapping[int, Total]

    @property
    def num_batches(self) -> int:
        """Of all sizes."""
        return sum(total.count for total in self.batches.values())


class RequestCounts:
    """Counts one model's requests. Thread-safe: both transports' loops come here."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._last_ms = 0
        self._num_items = 0
        self._success = self._fail = Total()
        self._stages: dict[Stage, Total] = dict.fromkeys(STAGES, Total())

    def watching(self, call: Call, num_items: int) -> "Watch":
        """Count what happens in the block as one request of so many items."""
        return Watch(self, call, num_items)

    def view(self, name: str, batches: Mapping[int, tuple[int, float]]) -> ModelStatistics:
        """The numbers as they are now.

        Args:
            name: Of the model.
            batches: By number of items, how many there were and their seconds together.
        """
        with self._lock:
            return ModelStatistics(
                name=name,
                last_ms=self._last_ms,
                num_items=self._num_items,
                success=self._success,
                fail=self._fail,
                stages=dict(self._stages),
                batches={
                    size: Total(count, round(seconds * NS_PER_S))
                    for size, (count, seconds) in batches.items()
                },
            )

    def _count(self, seconds: float, num_items: int, stages: Mapping[Stage, float] | None) -> None:
        """Without stages the request was not answered."""
        with self._lock:
            self._last_ms = int(self._now() * 1000)
            if stages is None:
                self._fail = self._fail.plus(seconds)
                return
            self._success = self._success.plus(seconds)
            self._num_items += num_items
            for stage in STAGES:
                if stage in stages:
                    self._stages[stage] = self._stages[stage].plus(stages[stage])


class Watch:
    """One request; written out, for every request passes through it."""

    __slots__ = ("_before", "_began", "_call", "_counts", "_num_items")

    def __init__(self, counts: RequestCounts, call: Call, num_items: int) -> None:
        self._counts, self._call, self._num_items = counts, call, num_items
        self._began = call.clock()
        self._before = dict(call.stages)

    def __enter__(self) -> None:
        """Nothing is to be done: it began when it was made."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        seconds = self._call.clock() - self._began
        stages = None
        if kind is None:
            # A call may hold two requests, images and texts; each counts what it added.
            stages = {
                stage: max(0.0, total_s - self._before.get(stage, 0.0))
                for stage, total_s in self._call.stages.items()
            }
        self._counts._count(seconds, self._num_items, stages)
