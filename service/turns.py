"""Waiting items of several flows, which take turns; it does not know what waits."""

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Generic, TypeVar

T = TypeVar("T")


class FlowTurns(Generic[T]):
    """Items of one flow wait in the order of arrival, and flows take turns. Not thread-safe."""

    def __init__(self) -> None:
        # The first flow is the next to be served; none is empty.
        self._items: dict[str, deque[T]] = {}

    def __bool__(self) -> bool:
        return bool(self._items)

    def __iter__(self) -> Iterator[T]:
        """All items, flow by flow."""
        return chain.from_iterable(self._items.values())

    def add(self, flow: str, item: T) -> None:
        """Queue an item behind those of its flow."""
        self._items.setdefault(flow, deque()).append(item)

    def next(self) -> T:
        """The item that `pop` removes."""
        return next(iter(self._items.values()))[0]

    def pop(self) -> tuple[str, T]:
        """Remove the next item; its flow goes to the end."""
        flow = next(iter(self._items))
        items = self._items.pop(flow)
        item = items.popleft()
        if items:
            self._items[flow] = items
        return flow, item

    def remove(self, flow: str, item: T) -> None:
        """Remove an item that waits."""
        self._items[flow].remove(item)
        if not self._items[flow]:
            del self._items[flow]
