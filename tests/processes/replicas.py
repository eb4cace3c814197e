"""Two replicas behind a proxy, replaced one by one like a rolling update of Kubernetes.

A new replica starts, becomes ready and gets requests. Then an old one is deleted: after a delay the
proxy removes it, and at the same time `preStop` sleeps. After SIGTERM the replica must drain and
exit with 0.
"""

import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.processes.proxy import Proxy
from tests.processes.service_process import RunningService, running_service

NUM_REPLICAS: Final = 2
EXIT_LIMIT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """How an old replica is stopped.

    Attributes:
        pre_stop_s: Seconds from deletion to the signal.
        notice_s: Seconds from deletion until the proxy is updated; None if only its own readiness
        checks remove the replica.
        number: Signal number.
    """

    pre_stop_s: float = 0.32
    notice_s: float | None = 0.3
    number: signal.Signals = signal.SIGTERM


class Replicas:
    """The serving replicas, as a context.

    Args:
        proxy: A running proxy.
        folder: Folder for logs.
        flags: Flags of each replica.
        num_replaced: Number of replicas to replace.
    """

    def __init__(
        self, proxy: Proxy, folder: Path, flags: Sequence[str], *, num_replaced: int
    ) -> None:
        self._proxy, self._folder, self._flags = proxy, folder, flags
        self._num_wanted = NUM_REPLICAS + num_replaced
        self._stack = ExitStack()
        self._serving: dict[int, RunningService] = {}
        self._starter = ThreadPoolExecutor(1, "starter")
        self._next: Future[RunningService]
        self._num_started = 0
        self.exit_statuses: Counter[int] = Counter()

    def __enter__(self) -> Self:
        self._order()
        for slot in range(1, NUM_REPLICAS + 1):
            self._put_in(slot)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._starter.shutdown()
        self._stack.close()

    def replace_oldest(self, deletion: Deletion) -> None:
        """Add a new replica, then stop the oldest: `maxSurge: 1`, `maxUnavailable: 0`."""
        oldest = next(iter(self._serving))
        self._put_in(min({*range(1, NUM_REPLICAS + 2)} - {*self._serving}))
        self._delete(oldest, deletion)

    def _order(self) -> None:
        """Start the next one in advance, because a start takes seconds."""
        if self._num_started < self._num_wanted:
            self._num_started += 1
            log = self._folder / f"replica{self._num_started}.log"
            self._next = self._starter.submit(self._start, log)

    def _start(self, log: Path) -> RunningService:
        return self._stack.enter_context(running_service(*self._flags, log_path=log))

    def _put_in(self, slot: int) -> None:
        replica = self._next.result()
        self._proxy.put_in(slot, replica)
        self._serving[slot] = replica
        self._order()

    def _delete(self, slot: int, deletion: Deletion) -> None:
        replica = self._serving.pop(slot)
        steps: list[tuple[float, Callable[[], None]]] = [
            (deletion.pre_stop_s, lambda: replica.process.send_signal(deletion.number))
        ]
        if deletion.notice_s is not None:
            steps.append((deletion.notice_s, lambda: self._proxy.take_out(slot)))
        began = time.monotonic()
        for after_s, act in sorted(steps, key=lambda step: step[0]):
            time.sleep(max(0.0, began + after_s - time.monotonic()))
            act()
        self.exit_statuses[replica.process.wait(EXIT_LIMIT_S)] += 1
        self._proxy.take_out(slot)
