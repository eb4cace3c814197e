"""Tells whoever must be told when a model's lanes stop being well, and when they are well again.

Lanes find out themselves how they are; see `service.lanes.worker`. A thread of its own looks,
since what hangs cannot tell.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final

TICK_S: Final = 1.0

Health = Mapping[str, bool]

logger = logging.getLogger(__name__)


class Watchdog:
    """Looks every second, or as often as lanes try themselves.

    Args:
        look: Whether each model can answer, by name.
        tell: Called by the watchdog's thread with all of them when any has changed.
        interval_s: How often lanes try themselves, in seconds.
    """

    def __init__(
        self, look: Callable[[], Health], tell: Callable[[Health], None], interval_s: float
    ) -> None:
        self._look = look
        self._tell = tell
        self._tick_s = min(TICK_S, interval_s)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._last: Health = {}

    def start(self) -> None:
        """Begin to look; what is seen first counts as known."""
        self._last = dict(self._look())
        self._thread.start()

    def stop(self) -> None:
        """Tell nothing more."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def look_once(self) -> None:
        """Look, and tell what has changed."""
        health = dict(self._look())
        changed = {
            name: well for name, well in health.items() if self._last.get(name, True) != well
        }
        self._last = health
        for name, is_well in changed.items():
            level = logging.WARNING if is_well else logging.ERROR
            text = "a model answers again" if is_well else "a model no longer answers"
            logger.log(level, text, extra={"fields": {"model": name}})
        if changed:
            self._tell(health)

    def _watch(self) -> None:
        while not self._stopping.wait(self._tick_s):
            try:
                self.look_once()
            except Exception:
                logger.exception("the watchdog could not look")
