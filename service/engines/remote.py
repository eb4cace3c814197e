"""What engines over the network share: threads that wait for answers, and when to try again."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from model.winner_map import Labels
from service.engines.engine import Embedding, EngineError, ModelSummary
from service.messages import EmbedImagesRequest, SegmentImagesRequest

NUM_THREADS: Final = 16
MAX_TRIES: Final = 8
LONGEST_PAUSE_S: Final = 30.0
REQUEST_TIMEOUT_S: Final = 120.0

T = TypeVar("T")

logger = logging.getLogger(__name__)


class TryAgain(Exception):
    """A later try may succeed.

    Attributes:
        after_s: When the server said to come back, if it did.
    """

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class RemoteEngine(ABC):
    """A server's answers. Subclasses ask once; this asks again where that helps.

    Args:
        pause: Waits so many seconds.
    """

    def __init__(self, pause: Callable[[float], None] = time.sleep) -> None:
        self.window = 2 * NUM_THREADS
        self._threads = ThreadPoolExecutor(NUM_THREADS, "asking")
        self._pause = pause
        self._lock = threading.Lock()
        self._has_told = False

    def embed(self, request: EmbedImagesRequest) -> "Future[Embedding]":
        """As `Engine` has it."""
        return self._threads.submit(lambda: self._patiently(lambda: self.embed_once(request)))

    def segment(self, request: SegmentImagesRequest) -> Labels:
        """As `Engine` has it."""
        return self._patiently(lambda: self.segment_once(request))

    def models(self) -> list[ModelSummary]:
        """As `Engine` has it."""
        return self._patiently(self.models_once)

    def close(self) -> None:
        """Give up what waits, and close the connections."""
        self._threads.shutdown(cancel_futures=True)

    @abstractmethod
    def embed_once(self, request: EmbedImagesRequest) -> Embedding:
        """Ask.

        Raises:
            TryAgain: A later try may succeed.
            ImageRefused: The image cannot be used.
            EngineError: Anything else.
        """

    @abstractmethod
    def segment_once(self, request: SegmentImagesRequest) -> Labels:
        """Ask; raises as `embed_once`."""

    @abstractmethod
    def models_once(self) -> list[ModelSummary]:
        """Ask; raises as `embed_once`."""

    def _patiently(self, ask: Callable[[], T]) -> T:
        for attempt in range(MAX_TRIES):
            try:
                return ask()
            except TryAgain as error:
                last = error
            if attempt == 1:
                self._tell_once(f"{last} It is asked again, {MAX_TRIES} times in all.")
            if attempt + 1 < MAX_TRIES:
                self._pause(min(LONGEST_PAUSE_S, last.after_s or 0.2 * 2**attempt))
        raise EngineError(f"{last} It was asked {MAX_TRIES} times.") from last

    def _tell_once(self, sentence: str) -> None:
        """Say why nothing happens, so that nobody has to wonder for half a minute."""
        with self._lock:
            has_told, self._has_told = self._has_told, True
        if not has_told:
            logger.warning(sentence)
