"""The patches of one model's queue: what admitted requests hold, and which others fit."""

from collections import Counter
from typing import Final

from service.call import Call
from service.errors import (
    DeadlineExceeded,
    Overloaded,
    RequestTooLarge,
    ServiceError,
    device_unhealthy,
)
from service.lanes.batching import Batcher
from service.monitoring.metrics import Metrics, ModelCounter

# Bounds of the delay before a retry, and its value before anything was measured.
MIN_RETRY_S: Final = 0.1
MAX_RETRY_S: Final = 30.0
FIRST_RETRY_S: Final = 1.0
# A caller that has work may hold this many times what it leaves free, so one caller leaves an
# eighth of the queue to others, and two leave a fifteenth.
# Source: dynamic thresholds (A. Choudhury, E. Hahne, 1998).
HELD_TO_FREE: Final = 7


class PatchBudget:
    """The patches of one model that all its admitted requests hold. Changed by `Admission` only.

    Attributes:
        max_patches: Upper bound.
        num_patches: Held by all requests.
        num_requests: Requests that hold some.
        rejected: Counts refused requests by reason.
    """

    def __init__(self, max_patches: int, metrics: Metrics, lanes: Batcher) -> None:
        self.max_patches = max_patches
        self.num_patches = 0
        self.num_requests = 0
        self.rejected = ModelCounter(metrics.rejected)
        self._lanes = lanes
        self._held: Counter[str] = Counter()
        self._num_of_streams = 0

    def is_full(self, caller: str) -> bool:
        """Whether the smallest request of a caller does not fit."""
        return not self._fits_share(1, caller)

    def fits(self, num_patches: int, call: Call) -> bool:
        """Whether a request fits into the queue, the share of its caller, and that of streams."""
        if call.waits_for_capacity and not self.fits_streams(num_patches):
            return False
        return self._fits_share(num_patches, call.caller)

    def fits_streams(self, num_patches: int) -> bool:
        """Whether it fits into the half of the queue that streams may use."""
        of_streams = self._num_of_streams
        return not of_streams or of_streams + num_patches <= self.max_patches // 2

    def retry_after_s(self) -> float:
        """Expected time until the lanes have computed all admitted patches."""
        per_s = self._lanes.patches_per_s
        needed_s = self.num_patches / per_s if per_s else FIRST_RETRY_S
        return min(max(needed_s, MIN_RETRY_S), MAX_RETRY_S)

    def check(self, num_patches: int, call: Call) -> None:
        """Refuse a request that can never run, or not before its deadline.

        Raises:
            Unavailable: No lane is healthy.
            RequestTooLarge: It has more patches than the whole queue.
            DeadlineExceeded: The deadline has passed, or cannot be met.
        """
        if not self._lanes.is_ready:
            raise self.refused("unhealthy", device_unhealthy())
        if num_patches > self.max_patches:
            large = f"The request costs {num_patches} patches, at most {self.max_patches} fit"
            raise self.refused("too_large", RequestTooLarge(f"{large} into the queue; split it."))
        reason = "caller_deadline" if call.has_short_deadline else "deadline"
        try:
            left_s = call.remaining_s()
        except DeadlineExceeded as error:
            raise self.refused(reason, error) from None
        needed_s = self._needed_s(num_patches, call)
        if needed_s > left_s:
            late = DeadlineExceeded(
                f"The deadline is in {left_s:.3f} s, but with the current queue this request "
                f"takes at least {needed_s:.3f} s. Allow more time, or try again later.",
                code="deadline_too_near",
            )
            raise self.refused(reason, late)

    def full(self) -> ServiceError:
        """The error for a request that does not fit now."""
        full = Overloaded("The queue is full; try again.", retry_after_s=self.retry_after_s())
        return self.refused("queue_full", full)

    def refused(self, reason: str, error: ServiceError) -> ServiceError:
        """Count a refusal; returns its error."""
        self.rejected.inc(reason)
        return error

    def hold(self, num_patches: int, call: Call, *, is_new: bool) -> None:
        """Count what a request takes; `is_new` if it has taken nothing before."""
        self.num_requests += is_new
        self._add(num_patches, call)

    def free(self, num_patches: int, call: Call) -> None:
        """Count the end of an admitted request."""
        self.num_requests -= 1
        self._add(-num_patches, call)

    def _fits_share(self, num_patches: int, caller: str) -> bool:
        free = self.max_patches - self.num_patches - num_patches
        held = self._held[caller] if caller else 0  # in process there are no other callers
        return free >= 0 and (not held or held + num_patches <= HELD_TO_FREE * free)

    def _add(self, num_patches: int, call: Call) -> None:
        self.num_patches += num_patches
        self._held[call.caller] += num_patches
        if not self._held[call.caller]:
            del self._held[call.caller]
        if call.waits_for_capacity:
            self._num_of_streams += num_patches

    def _needed_s(self, num_patches: int, call: Call) -> float:
        """Least time by fair sharing: no other caller has more served before than this one.

        0 on an idle server: a slow measurement must not refuse all requests for ever.
        """
        per_s = self._lanes.patches_per_s
        if not self.num_requests or not per_s:
            return 0.0
        own = self._held[call.caller] + num_patches
        others = sum(min(held, own) for caller, held in self._held.items() if caller != call.caller)
        is_urgent = call.priority == 1
        return (num_patches if is_urgent else own + others) / per_s
