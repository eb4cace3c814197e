"""One call as it goes through the data plane: its id, its deadline and the time each stage took."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Literal

from service.errors import DeadlineExceeded, InvalidRequest
from service.tracing import NO_TRACE, RequestTrace

Clock = Callable[[], float]
Stage = Literal["admit", "decode", "queue", "run", "post"]

PRIORITIES: Final = (1, 2, 3)
DEFAULT_PRIORITY: Final = 2

# Printable ASCII without the space.
REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")


@dataclass(slots=True, kw_only=True)
class Call:
    """What belongs to a call and not to its request.

    Attributes:
        request_id: Found in the answer's headers and in every log line of the call.
        deadline: Monotonic seconds after which nobody waits for the answer.
        started: Monotonic seconds at which it arrived.
        priority: One of `PRIORITIES`; 1 goes first.
        flow: What it came by; each gets its share of the lanes.
        stages: Seconds spent in each stage; of items that run side by side the slowest counts.
        item: Which request of its stream it is, from 0; None where it is one of its own.
        waits_for_capacity: Whether it waits in the queue of its model, until its deadline, where
            other calls are refused with `Overloaded`.
        trace: Where its stages and batches are told, if anywhere.
        error: Stable short name of what went wrong, once something has.
        model: Name of the served model that answers, once it is known; never what a caller made up.
    """

    request_id: str
    deadline: float
    clock: Clock = time.monotonic
    started: float = field(default_factory=time.monotonic)
    priority: int = DEFAULT_PRIORITY
    flow: str = ""
    item: int | None = None
    waits_for_capacity: bool = False
    stages: dict[Stage, float] = field(default_factory=dict)
    trace: RequestTrace = NO_TRACE
    error: str | None = None
    model: str = ""

    def remaining_s(self) -> float:
        """Seconds until the deadline.

        Raises:
            DeadlineExceeded: It has passed.
        """
        left = self.deadline - self.clock()
        if left <= 0:
            raise deadline_exceeded()
        return left

    def add(self, stage: Stage, seconds: float) -> None:
        """Count seconds towards a stage."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    def wait(self, stage: Stage, seconds: float) -> None:
        """Count a wait towards a stage; of waits side by side only the longest counts."""
        self.stages[stage] = max(self.stages.get(stage, 0.0), seconds)

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Count the time inside the block towards a stage, however the block ends."""
        started = self.clock()
        try:
            yield
        finally:
            ended = self.clock()
            self.add(name, ended - started)
            self.trace.stage(name, started, ended)

    def server_timing(self) -> str:
        """The value of a `Server-Timing` header: the stages so far and the total, in ms."""
        total = f"total;dur={1000 * (self.clock() - self.started):.2f}"
        return ", ".join([*(f"{n};dur={1000 * s:.2f}" for n, s in self.stages.items()), total])


def deadline_exceeded() -> DeadlineExceeded:
    """The one wording of a passed deadline."""
    return DeadlineExceeded("The deadline passed before the answer was ready.")


def accept_request_id(given: str | None) -> str:
    """The caller's id where it is short, printable ASCII and one word, else a new one.

    With spaces in it, it could say in a text log what stands behind it, such as another code.
    """
    if given is not None and REQUEST_ID.fullmatch(given):
        return given
    return os.urandom(16).hex()


def accept_priority(given: str | None, *, param: str) -> int:
    """The priority as a caller writes it, or the default where none is written.

    Raises:
        InvalidRequest: It is no known level.
    """
    if given is None:
        return DEFAULT_PRIORITY
    known = {str(level): level for level in PRIORITIES}
    if given not in known:
        raise InvalidRequest(
            f"{param} is one of {', '.join(known)}; 1 goes first.",
            code="unknown_priority",
            param=param,
        )
    return known[given]


current_call: ContextVar[Call] = ContextVar("current_call")


def current_request_id() -> str:
    """The id of the call that is being served, or a new one where none has begun."""
    call = current_call.get(None)
    return accept_request_id(None) if call is None else call.request_id
