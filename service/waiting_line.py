"""The entries of one bucket that wait, in the order in which they are served."""

import heapq
from collections import OrderedDict
from collections.abc import Iterator

from service.work import Entry


class WaitingLine:
    """Ordered by rank; an entry leaves it from anywhere at the cost of leaving at the head.

    Within a priority level entries come in the order of their ranks, so each level is a queue of
    its own and only the levels' heads need to be compared. Not thread-safe.
    """

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[int, Entry]] = {}
        self.cost = 0

    def add(self, entry: Entry) -> None:
        """Let an entry wait."""
        level = self._levels.setdefault(entry.item.priority, OrderedDict())
        level[entry.number] = entry
        self.cost += entry.item.cost

    def remove(self, entry: Entry) -> bool:
        """Forget an entry; False where it does not wait here."""
        level = self._levels.get(entry.item.priority)
        if level is None or level.pop(entry.number, None) is None:
            return False
        if not level:
            del self._levels[entry.item.priority]
        self.cost -= entry.item.cost
        return True

    def num_waiting(self, priority: int) -> int:
        """How many wait at this level or a more urgent one."""
        return sum(len(level) for number, level in self._levels.items() if number <= priority)

    @property
    def head(self) -> Entry:
        """Who is next; the line must not be empty."""
        return min(self._heads(), key=lambda entry: entry.rank)

    @property
    def oldest(self) -> float:
        """When the entry that has waited longest came, in monotonic seconds."""
        return min(entry.enqueued for entry in self._heads())

    def __iter__(self) -> Iterator[Entry]:
        levels = (level.values() for level in self._levels.values())
        return heapq.merge(*levels, key=lambda entry: entry.rank)

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def _heads(self) -> Iterator[Entry]:
        return (next(iter(level.values())) for level in self._levels.values())
