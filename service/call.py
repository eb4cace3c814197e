"""A call: the request id, deadline, priority and stage times of one request."""

import asyncio
import functools
import ipaddress
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, get_args

from service.errors import DeadlineExceeded, InvalidRequest
from service.tracing import NO_TRACE, RequestTrace

Clock = Callable[[], float]
Stage = Literal["admit", "decode", "queue", "run", "post"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
# How a transport writes arrays: their bytes, JSON lists, base64 in JSON, a message of protobuf, an
# image, an image over the original, or the outlines of classes.
AnswerForm = Literal["bytes", "list", "base64", "protobuf", "png", "overlay", "outlines"]

PRIORITIES: Final = (1, 2, 3)
DEFAULT_PRIORITY: Final = 2

# Flows of a protocol; hosts beyond them share flows. Any number of hosts may come.
NUM_HOST_FLOWS: Final = 4096
IPV6: Final = 6
IPV6_HOST_BITS: Final = 64
# Printable ASCII without the space.
REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")

# Seeded by the operating system. An id must be unique, not secret, and one system call per id took
# 9 % of the CPU time of a small request.
_ids: Final = random.Random()


class HeldMemory(Protocol):
    """Memory that a call holds for its answer; see `service.work_memory`."""

    @property
    def is_contended(self) -> bool:
        """Whether a request waits for such memory."""

    def free(self) -> None:
        """Give it back; later calls have no effect."""


class AnswerOrder:
    """Lets the requests of a stream take memory for their answers in order.

    Answers are sent in order. If a later one took the memory that an earlier one waits for, neither
    could be sent.
    """

    def __init__(self) -> None:
        self._next = 0
        self._passed: set[int] = set()
        self._waiting: dict[int, asyncio.Event] = {}

    async def wait(self, item: int) -> None:
        """Return once all requests before this one have their memory or have ended."""
        if item > self._next:
            await self._waiting.setdefault(item, asyncio.Event()).wait()

    def passes(self, item: int) -> None:
        """A request has its memory or has ended; later calls have no effect."""
        if item >= self._next:
            self._passed.add(item)
        while self._next in self._passed:
            self._passed.remove(self._next)
            self._next += 1
        turn = self._waiting.pop(self._next, None)
        if turn is not None:
            turn.set()


@dataclass(slots=True, kw_only=True)
class Call:
    """The properties of a call that are not part of the request message.

    Attributes:
        request_id: Sent in the response headers and in every log line of the call.
        deadline: Monotonic seconds after which the answer is no longer needed.
        started: Monotonic seconds of its arrival.
        priority: One of `PRIORITIES`; 1 is the most urgent.
        host: Address of the caller; empty in process.
        flow: Name of the flow for fair sharing of the lanes; see `flow_of`.
        stages: Seconds in each stage; of items in parallel the slowest counts.
        item: Index of the request in its stream; None for a single request.
        answer_order: Order in which the requests of its stream take memory for their answers.
        waits_for_capacity: Whether it waits in the queue of its model, until its deadline, where
            other calls are refused with `Overloaded`.
        answer_form: How the answer is written, which says how much memory it takes.
        answer_memory: What the answer holds; `free_memory` frees it once the answer is sent.
        trace: Records stages and batches.
        error: Code of the error, after a failure.
        has_left: Whether the caller has closed the connection, also if the event loop has not
            noticed it yet. From any thread. Always false over gRPC.
        model: Name of the served model; empty until it is found, so that no name invented by a
            caller becomes a metric label.
    """

    request_id: str
    deadline: float
    clock: Clock = time.monotonic
    started: float = field(default_factory=time.monotonic)
    priority: int = DEFAULT_PRIORITY
    host: str = ""
    flow: str = ""
    item: int | None = None
    answer_order: AnswerOrder | None = None
    waits_for_capacity: bool = False
    answer_form: AnswerForm = "bytes"
    answer_memory: HeldMemory | None = None
    has_left: Callable[[], bool] = lambda: False
    stages: dict[Stage, float] = field(default_factory=dict)
    trace: RequestTrace = NO_TRACE
    error: str | None = None
    model: str = ""

    def remaining_s(self) -> float:
        """Seconds until the deadline.

        Raises:
            DeadlineExceeded: The deadline has passed.
        """
        left = self.deadline - self.clock()
        if left <= 0:
            raise deadline_exceeded()
        return left

    def free_memory(self) -> None:
        """Free what the answer holds."""
        if self.answer_memory is not None:
            self.answer_memory.free()

    def record(self, stage: Stage, started: float, ended: float) -> None:
        """Record one run of a stage, also in the trace."""
        self.stages[stage] = self.stages.get(stage, 0.0) + ended - started
        if self.trace.is_recording:
            self.trace.stage(stage, started, ended)

    def wait(self, stage: Stage, seconds: float) -> None:
        """Record a wait; of parallel waits only the longest counts."""
        self.stages[stage] = max(self.stages.get(stage, 0.0), seconds)

    def stage(self, name: Stage) -> "StageTimer":
        """Time a block as a stage, also if it fails."""
        return StageTimer(self, name)

    def server_timing(self) -> str:
        """Value of a `Server-Timing` header: the stages and the total in ms."""
        text, stages = "", self.stages
        # In the order of the stages: texts may have left their queue before images are decoded.
        for name in STAGES:
            if name in stages:
                text += f"{name};dur={1000 * stages[name]:.2f}, "
        return f"{text}total;dur={1000 * (self.clock() - self.started):.2f}"


@functools.lru_cache(1024)
def flow_of(protocol: str, host: str) -> str:
    """Name of the flow of a protocol's calls from a host, which shares fairly with others.

    An IPv6 host has 2**64 addresses of its own, so they count as one. Callers behind a proxy are
    one host, unless `trusted_proxies` names it. The hash has a secret seed, so no caller can choose
    the flow of another host.

    Source: stochastic fairness queueing (P. McKenney, 1990).
    """
    with suppress(ValueError):  # such as a Unix socket
        address = ipaddress.ip_address(host.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        host = str(address)
        if address.version == IPV6:
            host = str(ipaddress.ip_network((address, IPV6_HOST_BITS), strict=False))
    return f"{protocol} {hash(host) % NUM_HOST_FLOWS}"


class StageTimer:
    """Times a block. A class instead of `contextmanager`: a request has three."""

    __slots__ = ("_call", "_name", "_started")

    def __init__(self, call: Call, name: Stage) -> None:
        self._call, self._name = call, name
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = self._call.clock()

    def __exit__(self, *raised: object) -> None:
        self._call.record(self._name, self._started, self._call.clock())


def deadline_exceeded() -> DeadlineExceeded:
    """The error for a deadline that has passed."""
    return DeadlineExceeded("The deadline passed before the answer was ready.")


def accept_request_id(given: str | None) -> str:
    """The caller's id if it is short, printable ASCII without spaces; otherwise a new one.

    An id with spaces could forge the fields that follow it in a text log line.
    """
    if given is not None and REQUEST_ID.fullmatch(given):
        return given
    return f"{_ids.getrandbits(128):032x}"


def accept_priority(given: str | None, *, param: str) -> int:
    """Parse a priority; None is the default.

    Raises:
        InvalidRequest: It is not one of `PRIORITIES`.
    """
    if given is None:
        return DEFAULT_PRIORITY
    known = {str(level): level for level in PRIORITIES}
    if given not in known:
        raise InvalidRequest(
            f"{param} must be one of {', '.join(known)}; 1 is the most urgent.",
            code="unknown_priority",
            param=param,
        )
    return known[given]


current_call: ContextVar[Call] = ContextVar("current_call")


def current_request_id() -> str:
    """The id of the current call, or a new one outside of a call."""
    call = current_call.get(None)
    return accept_request_id(None) if call is None else call.request_id
