"""One lane's runtime: batches of equal items in, one set of outputs for each item out.

Shape legend: B batch, L tokens, D width, H W pixels.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.dense_maps import MapTask
from model.runtime.base import Runtime
from service.lanes.collation import Inputs, collate
from service.lanes.work import Bucket, Outputs

TEXT_OUTPUT = "text"

logger = logging.getLogger(__name__)


def made_up_items(bucket: Bucket, num_items: int) -> list[NDArray[Any]]:
    """Items that the runtime takes like any others."""
    if bucket.is_image:
        return [np.ones((3, *bucket.shape), np.float32)] * num_items
    return [np.ones(bucket.shape, np.int64)] * num_items


class WarmUpError(RuntimeError):
    """A runtime did not give usable outputs for one of the served shapes."""


class Lane:
    """Runs batches on a runtime of its own; one thread at a time.

    Args:
        load: Makes the runtime, and makes it anew when it no longer computes.
        embed_dim: Width of every embedding.
        probe_bucket: Of the item by which the lane tries itself.
    """

    def __init__(
        self, load: Callable[[], Runtime], *, embed_dim: int, probe_bucket: Bucket
    ) -> None:
        self.probe_bucket = probe_bucket
        self._embed_dim = embed_dim
        self._load = load
        self.runtime = load()

    def run(self, bucket: Bucket, inputs: Inputs) -> list[Outputs]:
        """Compute one batch.

        Args:
            bucket: Of all items.
            inputs: As `collate` makes them.

        Returns:
            For each image its patches and values [N, D], cls1 and cls2 [D]; for each text `text`
            [D]. Not normalised. Of a dense head, for each image its map under the bucket's kind.
        """
        if bucket.kind == "image":
            return self._images(*inputs)
        if bucket.kind == "text":
            return self._texts(*inputs)
        return self._maps(bucket.kind, *inputs)

    def try_out(self, bucket: Bucket, num_items: int = 1) -> None:
        """Run one batch of made-up items and look at what comes back.

        Raises:
            WarmUpError: Outputs are missing, of another width, or not finite.
        """
        results = self.run(bucket, collate(bucket, made_up_items(bucket, num_items)))
        arrays = [array for outputs in results for array in outputs.values()]
        sound = all(self._fits(bucket, a) and np.isfinite(a).all() for a in arrays)
        if len(results) != num_items or not sound:
            raise WarmUpError(
                f"the runtime {self.runtime.name!r} gives no usable results for "
                f"{bucket.label}; try another runtime, or export the model again"
            )

    def probe(self) -> None:
        """Try one item.

        Raises:
            Exception: The runtime does not compute.
        """
        self.try_out(self.probe_bucket)

    def interrupt(self) -> None:
        """End the batch that runs; see `Runtime.interrupt`."""
        self.runtime.interrupt()

    def rebuild(self) -> None:
        """Free the runtime, as far as it lets itself be freed, and load it anew.

        Raises:
            Exception: It cannot be loaded.
        """
        try:
            self.runtime.close()
        except Exception:
            logger.exception("a broken runtime could not be closed")
        self.runtime = self._load()

    def _fits(self, bucket: Bucket, array: NDArray[np.float32]) -> bool:
        """Whether an output has the shape that it should have."""
        if bucket.kind == "depth":
            return array.ndim == 2
        if bucket.kind == "normals":
            return array.ndim == 3 and len(array) == 3
        return bool(array.shape[-1] == self._embed_dim)

    def _maps(self, task: MapTask, pixels_B3HW: NDArray[Any]) -> list[Outputs]:
        return [{task: array} for array in self.runtime.estimate(task, pixels_B3HW)]

    def _images(self, pixels_B3HW: NDArray[Any]) -> list[Outputs]:
        output = self.runtime.encode_images(pixels_B3HW)
        return [
            {
                "patches": output.patches_BND[i],
                "values": output.values_BND[i],
                "cls1": output.cls1_BD[i],
                "cls2": output.cls2_BD[i],
            }
            for i in range(len(output.cls1_BD))
        ]

    def _texts(self, ids_BL: NDArray[Any], mask_BL: NDArray[Any]) -> list[Outputs]:
        # Copies, for the cache keeps single rows long after their batch.
        return [{TEXT_OUTPUT: row.copy()} for row in self.runtime.encode_texts(ids_BL, mask_BL)]
