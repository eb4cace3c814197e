"""Watches the health of all models and reports changes.

Lanes track their own health; see `service.lanes.worker`. The watchdog polls it in a thread of its
own, since a hung lane cannot report anything.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final

TICK_S: Final = 1.0

Health = Mapping[str, bool]

logger = logging.getLogger(__name__)


class Watchdog:
    """Polls the health every second.

    Args:
        read_health: Returns whether each model is healthy, by name.
        on_change: Called in the watchdog's thread with the health of all models when any changed.
    """

    def __init__(
        self, read_health: Callable[[], Health], on_change: Callable[[Health], None]
    ) -> None:
        self._read_health = read_health
        self._on_change = on_change
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._last: Health = {}

    def start(self) -> None:
        """Start polling; the first health is not reported."""
        self._last = dict(self._read_health())
        self._thread.start()

    def stop(self) -> None:
        """Stop polling."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def poll(self) -> None:
        """Read the health, and report it if it changed."""
        health = dict(self._read_health())
        changed = {
            name: is_healthy
            for name, is_healthy in health.items()
            if self._last.get(name, True) != is_healthy
        }
        self._last = health
        for name, is_healthy in changed.items():
            level = logging.WARNING if is_healthy else logging.ERROR
            text = "a model answers again" if is_healthy else "a model no longer answers"
            logger.log(level, text, extra={"fields": {"model": name}})
        if changed:
            self._on_change(health)

    def _watch(self) -> None:
        while not self._stopping.wait(TICK_S):
            try:
                self.poll()
            except Exception:
                logger.exception("the watchdog could not read the health")
