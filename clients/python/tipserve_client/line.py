"""The images of a stream without an answer yet, in order: bounded, sent again on a new stream.

`Line` is the bare state; the two windows let threads or tasks wait for its changes.
"""

import asyncio
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from tipserve_client.errors import TipserveError


@dataclass(frozen=True, slots=True)
class Entry:
    """One image: its place, and its request or why there is none."""

    index: int
    request: Any = None
    error: TipserveError | None = None


class Line:
    """Entries from the first that has no answer on; those before `num_sent` were sent."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: deque[Entry] = deque()
        self._num_sent = 0
        self.num_streams = 0
        self.is_complete = False
        self.failure: BaseException | None = None

    @property
    def is_full(self) -> bool:
        """Whether nothing more is taken from the caller."""
        return len(self._entries) >= self._size

    @property
    def is_settled(self) -> bool:
        """Whether one can say what is next: an entry, or the end."""
        return bool(self._entries) or self.is_complete

    @property
    def head(self) -> Entry | None:
        """The first that has no answer."""
        return self._entries[0] if self._entries else None

    def push(self, entry: Entry) -> None:
        """One more from the caller."""
        self._entries.append(entry)

    def end(self, failure: BaseException | None = None) -> None:
        """The caller has no more, or what gave them failed."""
        self.is_complete = True
        self.failure = failure

    def next_unsent(self) -> Entry | None:
        """The first that was not sent on this stream, which it then is; None where all were."""
        while self._num_sent < len(self._entries):
            entry = self._entries[self._num_sent]
            self._num_sent += 1
            if entry.error is None:
                return entry
        return None

    def pop(self) -> None:
        """The head has been answered."""
        self._entries.popleft()
        self._num_sent = max(0, self._num_sent - 1)

    def begin_stream(self) -> int:
        """Everything is unsent on a new stream; its number."""
        self._num_sent = 0
        self.num_streams += 1
        return self.num_streams


class ThreadWindow:
    """A line among threads: one that fills it, one that sends, one that answers."""

    def __init__(self, size: int) -> None:
        self.line = Line(size)
        self._changed = threading.Condition()
        self._is_closed = False

    def until_room(self) -> bool:
        """Return once one more has room; False where nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not self.line.is_full)
            return not self._is_closed

    def push(self, entry: Entry) -> None:
        """Add an entry; there must be room."""
        with self._changed:
            self.line.push(entry)
            self._changed.notify_all()

    def end(self, failure: BaseException | None = None) -> None:
        """No more comes."""
        with self._changed:
            self.line.end(failure)
            self._changed.notify_all()

    def take(self, stream: int) -> Entry | None:
        """The next to be sent on this stream, once there is one; None at its end."""
        found: Entry | None = None

        def is_known() -> bool:
            nonlocal found
            if self._is_closed or stream != self.line.num_streams:
                return True
            found = self.line.next_unsent()
            return found is not None or self.line.is_complete

        with self._changed:
            self._changed.wait_for(is_known)
        return found

    def head(self) -> Entry | None:
        """The first that has no answer, once there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self.line.is_settled)
            return self.line.head

    def pop(self) -> None:
        """The head has been answered."""
        with self._changed:
            self.line.pop()
            self._changed.notify_all()

    def begin_stream(self) -> int:
        """The number of a new stream; the one before it gets no more."""
        with self._changed:
            self._changed.notify_all()
            return self.line.begin_stream()

    def close(self) -> None:
        """Nobody wants answers any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class TaskWindow:
    """A line among the tasks of one event loop."""

    def __init__(self, size: int) -> None:
        self.line = Line(size)
        self._changed = asyncio.Event()

    def push(self, entry: Entry) -> None:
        """Add an entry; there must be room."""
        self.line.push(entry)
        self._changed.set()

    def end(self, failure: BaseException | None = None) -> None:
        """No more comes."""
        self.line.end(failure)
        self._changed.set()

    async def take(self, stream: int) -> Entry | None:
        """The next to be sent on this stream, once there is one; None at its end."""
        while stream == self.line.num_streams:
            found = self.line.next_unsent()
            if found is not None or self.line.is_complete:
                return found
            await self.until_change()
        return None

    async def head(self) -> Entry | None:
        """The first that has no answer, once there is one; None at the end."""
        while not self.line.is_settled:
            await self.until_change()
        return self.line.head

    def pop(self) -> None:
        """The head has been answered."""
        self.line.pop()
        self._changed.set()

    def begin_stream(self) -> int:
        """The number of a new stream; the one before it gets no more."""
        self._changed.set()
        return self.line.begin_stream()

    async def until_change(self) -> None:
        """Return once another task has changed the line."""
        self._changed.clear()
        await self._changed.wait()
