"""The entries of one bucket that wait, in the order in which they are served."""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator

from service.lanes.work import Entry

# An entry's priority level by now, what its flow has had, and its rank.
Turn = tuple[int, float, tuple[float, int]]


class WaitingLine:
    """Ordered by rank; an entry leaves it from anywhere at the cost of leaving at the head.

    Of one flow and priority level entries come in the order of their ranks, so each such level is a
    queue of its own and only the levels' heads need to be compared. Not thread-safe.
    """

    def __init__(self) -> None:
        self._levels: dict[tuple[int, str], OrderedDict[int, Entry]] = {}
        self.cost = 0

    def add(self, entry: Entry) -> None:
        """Let an entry wait."""
        level = self._levels.setdefault(_level_of(entry), OrderedDict())
        level[entry.number] = entry
        self.cost += entry.item.cost

    def remove(self, entry: Entry) -> bool:
        """Forget an entry; False where it does not wait here."""
        level = self._levels.get(_level_of(entry))
        if level is None or level.pop(entry.number, None) is None:
            return False
        if not level:
            del self._levels[_level_of(entry)]
        self.cost -= entry.item.cost
        return True

    def num_of(self, flow: str, priority: int) -> int:
        """How many of a flow wait at this level or a more urgent one."""
        return sum(
            len(entries)
            for (level, name), entries in self._levels.items()
            if name == flow and level <= priority
        )

    def flows(self) -> set[str]:
        """Whose entries wait."""
        return {flow for _, flow in self._levels}

    def first(self, key: Callable[[Entry], Turn]) -> Entry:
        """Who is next by this key, which keeps each flow's order; the line must not be empty."""
        return min(self._heads(), key=key)

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


def _level_of(entry: Entry) -> tuple[int, str]:
    return entry.item.priority, entry.item.flow
