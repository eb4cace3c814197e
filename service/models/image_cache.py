"""Encoded images by the bytes of their files: a bounded cache, so that an image is encoded once.

A further mask, classification or embedding of an image at the same size needs no decoding, no place
in the queue and no lane. An answer takes less time if its image was seen before, so callers with
API keys do not share entries unless the operator allows it.

Images at one size are kept. Windows of slide mode and maps of dense heads are not: one image of
them may have a hundred times the bytes. Pixels that came without an encoding are not kept either:
to digest them takes as long as to scale them.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.foreground import Foreground
from service.images import SizeRule
from service.lanes.work import Outputs
from service.models.served_model import ServedModel
from service.monitoring.metrics import Metrics

# Memory of an entry without its numbers: the key, the arrays' objects, a link and a slot.
ENTRY_OVERHEAD_BYTES: Final = 2048


@dataclass(slots=True, kw_only=True)
class EncodedImage:
    """Model outputs for one image.

    Attributes:
        parts: Outputs of the whole image, or of each window.
        grid_hw: Patch rows and columns of one part.
        scaled_hw: Height and width of the scaled image in pixels.
        size_hw: Height and width of the original image in pixels.
        guide_3YX: Its colours for `model.outlines`; None if they were not needed.
        foregrounds: For requests that name people or animals, by the patch embeddings in use.
    """

    parts: tuple[Outputs, ...]
    grid_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    size_hw: tuple[int, int]
    guide_3YX: NDArray[np.uint8] | None = None
    foregrounds: dict[str, Foreground] = field(default_factory=dict)

    @property
    def outputs(self) -> Outputs:
        """Outputs of a single-part image."""
        (outputs,) = self.parts
        return outputs


class ImageKey(NamedTuple):
    """What the outputs of an image depend on, and the API key whose requests may see them.

    Attributes:
        model: The loaded model; another one of its name has entries of its own.
        owner: Digest of the API key; empty if callers share entries.
        digest: SHA-256 of the file.
        rule: The size at which the model sees the image.
    """

    model: ServedModel
    owner: bytes
    digest: bytes
    rule: SizeRule


class ImageCache:
    """An LRU map from images to their outputs, bounded in bytes. Thread-safe, on any event loop.

    An entry larger than the bound is not kept.

    Args:
        metrics: Counts hits and misses.
        max_bytes: Of all entries; 0 keeps none.
        is_shared: Whether callers with different API keys share entries.
    """

    def __init__(self, metrics: Metrics, *, max_bytes: int = 0, is_shared: bool = False) -> None:
        self.num_bytes = 0
        self._max_bytes, self._is_shared, self._metrics = max_bytes, is_shared, metrics
        self._lock = threading.Lock()
        self._entries: OrderedDict[ImageKey, EncodedImage] = OrderedDict()
        metrics.image_cache_bytes.set_function(lambda: self.num_bytes)

    def key(
        self, image: object, rule: SizeRule, model: ServedModel, owner: bytes
    ) -> ImageKey | None:
        """The key of an image; None if it is not kept. CPU work: 0.5 ms for 1 MB."""
        if not self._max_bytes or rule.windows is not None or not isinstance(image, bytes):
            return None
        return ImageKey(model, b"" if self._is_shared else owner, sha256(image).digest(), rule)

    def find(
        self, key: ImageKey, names: Collection[str], *, has_guide: bool = False
    ) -> EncodedImage | None:
        """The entry of an image if it has all that is needed; its arrays are read-only."""
        with self._lock:
            image = self._entries.get(key)
            is_whole = image is not None and (image.guide_3YX is not None or not has_guide)
            if image is not None and is_whole and image.outputs.keys() >= set(names):
                self._entries.move_to_end(key)
                self._metrics.image_cache_hits.inc()
                return image
        self._metrics.image_cache_misses.inc()
        return None

    def keep(self, key: ImageKey, image: EncodedImage) -> EncodedImage:
        """Add the outputs of an image to its entry, and return it.

        Outputs are copied, since they may be rows of a batch.
        """
        outputs = {name: array.copy() for name, array in image.outputs.items()}
        for array in outputs.values():
            array.setflags(write=False)
        with self._lock:
            known = self._entries.pop(key, None)
            if known is not None:
                self.num_bytes -= _num_bytes(known)
                outputs = {**known.outputs, **outputs}
                if known.guide_3YX is not None:
                    image = replace(image, guide_3YX=known.guide_3YX, foregrounds=known.foregrounds)
            kept = replace(image, parts=(outputs,))
            if _num_bytes(kept) <= self._max_bytes:
                self._entries[key] = kept
                self.num_bytes += _num_bytes(kept)
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= _num_bytes(self._entries.popitem(last=False)[1])
        return kept

    def drop(self, model: ServedModel | None = None) -> None:
        """Remove the entries of a model that no request uses any more, or all."""
        with self._lock:
            if model is None:
                self._entries.clear()
                self.num_bytes = 0
            for key in [key for key in self._entries if key.model is model]:
                self.num_bytes -= _num_bytes(self._entries.pop(key))


def _num_bytes(image: EncodedImage) -> int:
    num_bytes = sum(array.nbytes for array in image.outputs.values()) + ENTRY_OVERHEAD_BYTES
    if image.guide_3YX is not None:
        num_bytes += 2 * image.guide_3YX.nbytes  # with room for `foregrounds`
    return num_bytes
