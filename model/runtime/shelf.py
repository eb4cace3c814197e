"""What several runtimes of one process hold together, so that weights are in memory once."""

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any


class Shelf:
    """Loaded graphs by what they were loaded from; what nobody holds any more is freed.

    A lane that is mended must not be handed the graph that it broke on, so a runtime takes what it
    held off the shelf when it is closed: whoever has it keeps it, whoever comes next loads anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()

    def take(self, key: Hashable, load: Callable[[], Any]) -> Any:
        """What lies there, or what `load` makes. Who loads makes the others wait."""
        with self._lock:
            found = self._held.get(key)
            if found is None:
                found = self._held[key] = load()
            return found

    def remove(self, key: Hashable, held: Any) -> None:
        """Hand it to nobody else."""
        with self._lock:
            if self._held.get(key) is held:
                del self._held[key]
