"""A call: the request id, deadline, priority and stage times of one request."""

import asyncio
import functools
import heapq
import ipaddress
import math
import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, get_args

from service.errors import DeadlineExceeded, InvalidRequest
from service.tracing import NO_TRACE, RequestTrace

if TYPE_CHECKING:  # at run time admission imports this module
    from service.admission import Ticket

Clock = Callable[[], float]
Stage = Literal["admit", "decode", "queue", "run", "post"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
# How a transport writes arrays: their bytes, JSON lists, base64 in JSON, a message of protobuf, an
# image, an image over the original, or the outlines of classes.
AnswerEncoding = Literal["bytes", "list", "base64", "protobuf", "png", "overlay", "outlines"]

PRIORITIES: Final = (1, 2, 3)
DEFAULT_PRIORITY: Final = 2
# What an idle server may take for reading, decoding and answering, beside the run of the model. To
# miss a caller's deadline that leaves less than both is no fault of the service.
LEAST_TIMEOUT_S: Final = 0.01

# So many images of a call, the largest, have their sizes logged.
NUM_LOGGED_SIZES: Final = 4

# Callers of one protocol that are told apart, so that their number is bounded.
NUM_CALLERS: Final = 4096
IPV6: Final = 6
IPV6_HOST_BITS: Final = 64
# Printable ASCII without the space.
REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")

# Seeded by the operating system. An id must be unique, not secret, and one system call per id took
# 9 % of the CPU time of a small request.
_ids: Final = random.Random()


@dataclass(slots=True, kw_only=True)
class Call:
    """The properties of a call that are not part of the request message.

    Attributes:
        request_id: Sent in the response headers and in every log line of the call.
        deadline: Monotonic seconds after which the answer is no longer needed.
        started: Monotonic seconds of its arrival.
        has_own_deadline: Whether the caller gave the deadline.
        unloaded_s: Seconds that the lanes of an idle server compute its images and texts; 0 before
            these are known.
        priority: One of `PRIORITIES`; 1 is the most urgent.
        host: Address of the caller; empty in process.
        caller: Name of the caller, for fair sharing of the lanes; see `caller_of`.
        stages: Seconds in each stage; of items in parallel the slowest counts.
        item: Index of the request in its stream; None for a single request.
        waits_for_capacity: Whether it waits in the queue of its model, until its deadline, where
            other calls are refused with `Overloaded`.
        answer_encoding: How the answer is written, which says how much memory it takes.
        ticket: What the request holds; None in process, where the data plane makes one.
        limit: Ends the request at its deadline, which `shorten` moves.
        trace: Records stages and batches.
        error: Code of the error, after a failure.
        model: Name of the served model; empty until it is found, so that no name invented by a
            caller becomes a metric label.
        key_name: Name of its API key, as the operator gave it; empty where no key is needed.
        key_digest: Digest of that key.
        num_items: Images and texts.
        num_bytes: Bytes of its body, and of images that its URLs name.
        sizes_hw: Height and width of each image that can be read.
        is_cached: Whether all its images were in the cache.
    """

    request_id: str
    deadline: float
    clock: Clock = time.monotonic
    started: float = field(default_factory=time.monotonic)
    has_own_deadline: bool = False
    unloaded_s: float = 0.0
    priority: int = DEFAULT_PRIORITY
    host: str = ""
    caller: str = ""
    item: int | None = None
    waits_for_capacity: bool = False
    answer_encoding: AnswerEncoding = "bytes"
    ticket: "Ticket | None" = None
    limit: asyncio.Timeout | None = None
    stages: dict[Stage, float] = field(default_factory=dict)
    trace: RequestTrace = NO_TRACE
    error: str | None = None
    model: str = ""
    key_name: str = ""
    key_digest: bytes = b""
    num_items: int = 0
    num_bytes: int = 0
    sizes_hw: Sequence[tuple[int, int]] = ()
    is_cached: bool = False

    @property
    def has_short_deadline(self) -> bool:
        """Whether even an idle server could not answer within the caller's own deadline."""
        least_s = LEAST_TIMEOUT_S + self.unloaded_s
        return self.has_own_deadline and self.deadline - self.started < least_s

    def remaining_s(self) -> float:
        """Seconds until the deadline.

        Raises:
            DeadlineExceeded: The deadline has passed.
        """
        left = self.deadline - self.clock()
        if left <= 0:
            raise deadline_exceeded()
        return left

    def shorten(self, deadline: float) -> None:
        """Move the deadline to one that the caller gives, unless it is nearer already."""
        if deadline >= self.deadline:
            return
        self.deadline, self.has_own_deadline = deadline, True
        if self.limit is not None:
            now = asyncio.get_running_loop().time()
            self.limit.reschedule(now + deadline - self.clock())

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
        return StageTimer(self, name, self.clock())

    def facts(self) -> dict[str, str | int]:
        """Who calls with what, for the log and the trace; nothing that a caller makes up."""
        largest_hw = heapq.nlargest(NUM_LOGGED_SIZES, self.sizes_hw, key=math.prod)
        facts: dict[str, str | int] = {
            "address": self.host,
            "caller": self.key_name,
            "model": self.model,
            "sizes": ",".join(f"{width}x{height}" for height, width in largest_hw),
            "items": self.num_items,
            "bytes": self.num_bytes,
        }
        return {name: value for name, value in facts.items() if value}

    def server_timing(self) -> str:
        """Value of a `Server-Timing` header: cache, if it was hit, and stages and total in ms."""
        text, stages = "cache;desc=hit, " if self.is_cached else "", self.stages
        # In the order of the stages: texts may have left their queue before images are decoded.
        for name in STAGES:
            if name in stages:
                text += f"{name};dur={1000 * stages[name]:.2f}, "
        return f"{text}total;dur={1000 * (self.clock() - self.started):.2f}"


@dataclass(slots=True)
class StageTimer:
    """A block that is timed; as a generator it would take four times as long."""

    call: Call
    name: Stage
    started: float

    def __enter__(self) -> None:
        """The block begins when the timer is made."""

    def __exit__(self, *raised: object) -> None:
        """Record the stage."""
        self.call.record(self.name, self.started, self.call.clock())


@functools.lru_cache(1024)
def caller_of(protocol: str, host: str) -> str:
    """Name of the caller at a host, over one protocol, with which others share fairly.

    An IPv6 host has 2**64 addresses of its own, so they count as one. Callers behind a proxy are
    one host, unless `trusted_proxies` names it. The hash has a secret seed, so no host can choose
    the name of another.

    Source: stochastic fairness queueing (P. McKenney, 1990).
    """
    with suppress(ValueError):  # such as a Unix socket
        address = ipaddress.ip_address(host.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        host = str(address)
        if address.version == IPV6:
            host = str(ipaddress.ip_network((address, IPV6_HOST_BITS), strict=False))
    return f"{protocol} {hash(host) % NUM_CALLERS}"


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
