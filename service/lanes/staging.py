"""Puts the next batch together while the lanes are busy with theirs.

Nothing leaves the queue for it. What lies ready is a copy of what would be the next batch now; the
lane that becomes free forms its batch as ever and uses of the copy what it can. So a lane never
waits for it, the urgent still overtake, and who leaves before the hand-over is not computed.

It is worth a thread where a device would be idle meanwhile. A lane that computes on the CPU is
itself the thread that would copy, and another one would only take turns with it.
"""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service.lanes.batch_queue import BatchQueue
from service.lanes.batch_run import collate_batch
from service.lanes.collation import Inputs, collate, take_rows
from service.lanes.work import Batch

STAGING_FAILED: Final = "a batch could not be put together ahead of its time"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Staged:
    inputs: Inputs
    row_of: Mapping[int, int]


class Stage:
    """One batch that lies ready. `inputs_of` may be called from any lane."""

    def __init__(self, queue: BatchQueue) -> None:
        self._queue = queue
        self._staged: _Staged | None = None
        self._thread = threading.Thread(target=self._work, name="staging", daemon=True)

    def start(self) -> None:
        """Begin; it ends when the queue is closed."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end, for at most so long."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def inputs_of(self, batch: Batch) -> Inputs:
        """The arrays of a batch: those that lie ready where they are all there, else new ones."""
        staged = self._staged
        if staged is not None:
            rows = [staged.row_of.get(entry.number) for entry in batch.entries]
            known = [row for row in rows if row is not None]
            if len(known) == len(rows):
                self._staged = None
                return take_rows(staged.inputs, known)
        return collate_batch(batch)

    def put_together(self) -> bool:
        """Wait until the next batch is another than what lies ready, and make it ready.

        Returns:
            False once the queue is closed.
        """
        staged = self._staged
        entries = self._queue.wait_and_peek(() if staged is None else tuple(staged.row_of))
        if entries is None:
            self._staged = None
            return False
        inputs = collate(entries[0].item.bucket, [entry.item.payload for entry in entries])
        self._staged = _Staged(inputs, {entry.number: i for i, entry in enumerate(entries)})
        return True

    def _work(self) -> None:
        try:
            while self.put_together():
                pass
        except Exception:
            # Lanes put their batches together themselves from now on.
            logger.exception(STAGING_FAILED)
            self._staged = None
