"""Whether lanes are well: what each runs and since when, and since when it has not been well.

A lane's own thread writes its pulse; any thread reads it. Times are monotonic seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from service.call import Clock
from service.errors import Unavailable

# A batch that takes so many times longer than its curve says is taken for hung.
PATIENCE: Final = 10.0
UNWELL_RETRY_S: Final = 5.0


class LaneState(Enum):
    """How a lane is."""

    READY = "ready"
    HUNG = "hung"
    REPAIR = "repair"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class _Run:
    began: float
    expected_s: float
    limit_s: float


class Pulse:
    """One lane's."""

    def __init__(self, clock: Clock, hang_limit_s: float) -> None:
        self._clock = clock
        self._hang_limit_s = hang_limit_s
        self._run: _Run | None = None
        self._ailing_since: float | None = None
        self._is_dead = False

    def begin(self, expected_s: float) -> None:
        """The lane begins to compute something."""
        limit_s = max(self._hang_limit_s, PATIENCE * expected_s)
        self._run = _Run(self._clock(), expected_s, limit_s)

    def end(self) -> None:
        """What it computed came out well."""
        self._run = None
        self._ailing_since = None

    def rest(self) -> None:
        """What it computed did not come out, and whose fault that is is not known yet."""
        self._run = None

    def fail(self) -> None:
        """It cannot compute, until something it computes comes out well."""
        self._run = None
        if self._ailing_since is None:
            self._ailing_since = self._clock()

    def die(self) -> None:
        """It is given up."""
        self.fail()
        self._is_dead = True

    @property
    def state(self) -> LaneState:
        """How it is now."""
        if self._is_dead:
            return LaneState.DEAD
        if self._hung_since() is not None:
            return LaneState.HUNG
        return LaneState.READY if self._ailing_since is None else LaneState.REPAIR

    @property
    def unwell_since(self) -> float | None:
        """None where it is ready."""
        return self._ailing_since if self._ailing_since is not None else self._hung_since()

    @property
    def remaining_s(self) -> float:
        """Seconds until it should be free; 0 where it is, or is late."""
        run = self._run
        return 0.0 if run is None else max(0.0, run.began + run.expected_s - self._clock())

    def _hung_since(self) -> float | None:
        run = self._run
        if run is None or self._clock() <= run.began + run.limit_s:
            return None
        return run.began + run.limit_s


def num_ready(pulses: Sequence[Pulse]) -> int:
    """How many lanes take work."""
    return sum(pulse.state is LaneState.READY for pulse in pulses)


def unwell_since(pulses: Sequence[Pulse]) -> float | None:
    """When the last of the lanes stopped being ready; None while one is."""
    times = [pulse.unwell_since for pulse in pulses]
    known = [time for time in times if time is not None]
    return max(known) if known and len(known) == len(times) else None


def unwell() -> Unavailable:
    """What callers are told while no lane is well."""
    return Unavailable(
        "The device does not answer; try again.", code="unhealthy", retry_after_s=UNWELL_RETRY_S
    )
