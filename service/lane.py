"""One lane's runtime: batches of equal items in, one set of outputs for each item out.

Shape legend: B batch, L tokens, D width, H W pixels.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.runtime.base import Runtime
from service.work import Bucket, Outputs

TEXT_OUTPUT = "text"

logger = logging.getLogger(__name__)


class WarmUpError(RuntimeError):
    """A runtime did not give usable outputs for one of the served shapes."""


class Lane:
    """Runs batches on a runtime of its own; one thread at a time."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def run(self, bucket: Bucket, payloads: Sequence[NDArray[Any]]) -> list[Outputs]:
        """Compute one batch.

        Args:
            bucket: Of all items.
            payloads: float32 [3, H, W] for pictures; int64 token ids [L] of any L for texts.

        Returns:
            For each picture its patches and values [N, D], cls1 and cls2 [D]; for each text `text`
            [D]. Not normalised.
        """
        return self._images(payloads) if bucket.kind == "image" else self._texts(payloads)

    def warm_up(self, buckets: Sequence[Bucket], embed_dim: int) -> None:
        """Run one batch of each bucket and look at what comes back.

        Raises:
            WarmUpError: Outputs are missing, of another width, or not finite.
        """
        for bucket in buckets:
            dtype = np.float32 if bucket.kind == "image" else np.int64
            shape = (3, *bucket.shape) if bucket.kind == "image" else bucket.shape
            results = self.run(bucket, [np.ones(shape, dtype)])
            arrays = [array for outputs in results for array in outputs.values()]
            sound = all(a.shape[-1] == embed_dim and np.isfinite(a).all() for a in arrays)
            if len(results) != 1 or not sound:
                raise WarmUpError(
                    f"the runtime {self.runtime.name!r} gives no usable embeddings for "
                    f"{bucket.label}; try another runtime, or export the model again"
                )

    def _images(self, pixels: Sequence[NDArray[Any]]) -> list[Outputs]:
        output = self.runtime.encode_images(np.stack(pixels))
        return [
            {
                "patches": output.patches_BND[i],
                "values": output.values_BND[i],
                "cls1": output.cls1_BD[i],
                "cls2": output.cls2_BD[i],
            }
            for i in range(len(output.cls1_BD))
        ]

    def _texts(self, rows: Sequence[NDArray[Any]]) -> list[Outputs]:
        longest = max(len(row) for row in rows)
        ids_BL = np.zeros((len(rows), longest), dtype=np.int64)
        mask_BL = np.zeros_like(ids_BL)
        for i, row in enumerate(rows):
            ids_BL[i, : len(row)] = row
            mask_BL[i, : len(row)] = 1
        # Copies, for the cache keeps single rows long after their batch.
        return [{TEXT_OUTPUT: row.copy()} for row in self.runtime.encode_texts(ids_BL, mask_BL)]
