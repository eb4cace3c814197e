"""Good requests over both protocols, whose answers are known and must stay the same."""

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tests.hostile.attack import Books
from tests.hostile.images import whole
from tipserve_client import Client, Overloaded, TipserveError

Ask = Callable[[], NDArray[Any]]
NUM_IMAGES: Final = 4
CLASSES: Final = ("dog", "grass", "sky")
RETRY_S: Final = 0.2
# The last bits depend on the other images of the batch; another image's answer differs by tenths.
MAX_DIFFERENCE: Final = 1e-3
MAX_OTHER_PIXELS: Final = 1e-3


class Trickle:
    """Good requests of one kind of client, one after the other.

    Every request is made once at the start, without load; these answers are the known ones.
    """

    def __init__(self, kind: str, asks: Mapping[str, Ask], books: Books) -> None:
        self._kind = kind
        self._asks = asks
        self._books = books
        self._known = {name: self._retried(ask) for name, ask in asks.items()}
        self.largest_difference = 0.0

    def ask_until(self, stop: threading.Event, pause_s: float) -> None:
        """Compare further answers with the known ones until `stop` is set."""
        while not stop.is_set():
            for name in self._asks:
                self._compare_once(name)
                if stop.wait(pause_s):
                    return

    def _compare_once(self, name: str) -> None:
        begun = time.monotonic()
        try:
            difference = distance(self._known[name], self._retried(self._asks[name]))
        except TipserveError as error:
            status, example = "failed", repr(error)
        else:
            self.largest_difference = max(self.largest_difference, difference)
            status = "right" if difference <= MAX_DIFFERENCE else "wrong"
            example = f"differs by {difference:.3g}"
        self._books.note(self._kind, status, time.monotonic() - begun)
        if status != "right":
            self._books.note_defect(f"{self._kind}: {status}", f"{name}: {example}")

    def _retried(self, ask: Ask) -> NDArray[Any]:
        while True:
            begun = time.monotonic()
            try:
                return ask()
            except Overloaded:
                self._books.note(self._kind, "refused", time.monotonic() - begun)
                time.sleep(RETRY_S)


def distance(known: NDArray[Any], answer: NDArray[Any]) -> float:
    """How far an answer is from the known one; infinite for another shape or type."""
    if known.shape != answer.shape or known.dtype != answer.dtype:
        return float("inf")
    if known.dtype.kind in "iu":
        # Labels at the border of two classes may change with the last bits.
        return float((known != answer).mean() / MAX_OTHER_PIXELS * MAX_DIFFERENCE)
    difference = float(np.abs(known - answer).max(initial=0.0))
    return difference if np.isfinite(difference) else float("inf")


def good_requests(client: Client) -> dict[str, Ask]:
    """Requests for images, texts and masks, by name."""

    def embed(image: bytes) -> NDArray[Any]:
        (embedding,) = client.embed_images(image, outputs="cls1")
        assert embedding.cls1 is not None
        return embedding.cls1

    def segment(image: bytes) -> NDArray[Any]:
        return client.segment(image, CLASSES)[0].labels

    asks: dict[str, Ask] = {}
    for seed in range(NUM_IMAGES):
        image = whole("JPEG", "RGB", seed)
        texts = [f"a photo of {seed} dogs", "sky"]
        asks[f"image {seed}"] = partial(embed, image)
        asks[f"mask {seed}"] = partial(segment, image)
        asks[f"texts {seed}"] = partial(client.embed_texts, texts)
    return asks
