"""Gives memory that nothing uses back to the system, which the C library would rather keep."""

import gc
import logging
import time

from service.memory_trim import trim

logger = logging.getLogger(__name__)


def give_back_memory() -> None:
    """Collect what only refers to itself, and hand back every free page.

    glibc keeps what was freed for later, in arenas of each thread, so that after a few swaps a
    process would hold several models' worth of nothing. Takes tens of milliseconds, in which
    other threads may wait: for rare moments only.
    """
    began = time.monotonic()
    num_objects = gc.collect()
    collected = time.monotonic()
    trim()
    fields = {
        "objects": num_objects,
        "collect_s": round(collected - began, 4),
        "trim_s": round(time.monotonic() - collected, 4),
    }
    logger.debug("memory given back", extra={"fields": fields})
