"""One lane's runtime: a batch of equal items in, one set of outputs for each item out.

Shape legend: B batch, L tokens, D width, H W pixels.
"""

import time
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.dense_maps import label_map
from model.graphs import DENSE_TASKS, PATCH_OUTPUTS, PatchOutput
from model.preprocess import as_planes
from model.runtime.base import Runtime, UnusableRuntimeError
from service.lanes.work import Bucket, Outputs

TEXT_OUTPUT = "text"
# Arrays of a batch. Images: float32 [B, 3, H, W]. Texts: token ids and mask, int64 [B, L] each.
Inputs = tuple[NDArray[Any], ...]


class WarmUpError(UnusableRuntimeError):
    """A runtime gives no usable outputs for a served shape."""


def collate(bucket: Bucket, payloads: Sequence[NDArray[Any]]) -> Inputs:
    """Stack the payloads of a bucket: images as uint8 or float32, texts padded to the longest.

    A single image is not copied if it is contiguous.
    """
    if bucket.is_image:
        if len(payloads) == 1:
            return (np.ascontiguousarray(payloads[0])[None],)
        if all(pixels_3HW.dtype == np.uint8 for pixels_3HW in payloads):
            return (np.stack(payloads),)
        images_B3HW = np.empty((len(payloads), *payloads[0].shape), np.float32)
        for planes_3HW, pixels_3HW in zip(images_B3HW, payloads, strict=True):
            as_planes(pixels_3HW, planes_3HW)
        return (images_B3HW,)
    longest = max(len(row) for row in payloads)
    ids_BL = np.zeros((len(payloads), longest), dtype=np.int64)
    mask_BL = np.zeros_like(ids_BL)
    for i, row in enumerate(payloads):
        ids_BL[i, : len(row)] = row
        mask_BL[i, : len(row)] = 1
    return ids_BL, mask_BL


class Lane:
    """Runs batches on its own runtime, in one thread at a time.

    Args:
        runtime: Of this lane only.
        embed_dim: Width of every embedding.
        trial_bucket: Bucket of the synthetic item of trial batches.
        num_labels: Number of classes of the segmentation head.
    """

    def __init__(
        self, runtime: Runtime, *, embed_dim: int, trial_bucket: Bucket, num_labels: int = 0
    ) -> None:
        self.runtime = runtime
        self._trial_bucket = trial_bucket
        self._num_labels = num_labels
        self._embed_dim = embed_dim

    def run(
        self, bucket: Bucket, inputs: Inputs, patch_outputs: Collection[PatchOutput] = PATCH_OUTPUTS
    ) -> list[Outputs]:
        """Compute one batch.

        Args:
            bucket: Of all items.
            inputs: Of the batch.
            patch_outputs: Which of them to return.

        Returns:
            One mapping for each item, not normalised. Images: `cls1` and `cls2` [D], and the patch
            outputs [N, D]. Texts: `text` [D]. Dense heads: a map under the name of the head; of
            segmentation the logits, or beside embeddings the labels.
        """
        if bucket.kind == "text":
            # Copies, since the cache keeps single rows long after their batch.
            return [{TEXT_OUTPUT: row.copy()} for row in self.runtime.encode_texts(*inputs)]
        (pixels_B3HW,) = inputs
        if not self.runtime.takes_bytes:
            pixels_B3HW = as_planes(pixels_B3HW)
        match bucket.kind:
            case "depth" | "normals" | "segmentation" as task:
                return [{task: array} for array in self.runtime.estimate(task, pixels_B3HW)]
        tasks = [task for task in DENSE_TASKS if task in bucket.kind.split("+")]
        output = self.runtime.encode_images(pixels_B3HW, tasks, patch_outputs)
        named = {"cls1": output.cls1_BD, "cls2": output.cls2_BD}
        for name, array in (("patches", output.patches_BND), ("values", output.values_BND)):
            if array.shape[1]:
                named[name] = array
        named |= {task: output.maps[task] for task in tasks}
        if "segmentation" in named:
            # Logits of B/14 have 39 MB an image, labels 0.1 MB.
            named["segmentation"] = np.stack([label_map(x) for x in named["segmentation"]])
        num_items = min(map(len, named.values()))
        return [{name: rows[i] for name, rows in named.items()} for i in range(num_items)]

    def run_synthetic(self, bucket: Bucket, num_items: int = 1) -> float:
        """Compute a batch of synthetic items and validate the outputs.

        Returns:
            Seconds of the batch, without those of making the items and of the validation.

        Raises:
            WarmUpError: Outputs are missing, of a wrong shape, or not finite.
        """
        item = np.ones((3, *bucket.shape), np.float32)
        if not bucket.is_image:
            item = np.ones(bucket.shape, np.int64)
        began = time.monotonic()
        results = self.run(bucket, collate(bucket, [item] * num_items))
        seconds = time.monotonic() - began
        arrays = [array for outputs in results for array in outputs.values()]
        is_sound = all(self._has_shape(bucket, a) and np.isfinite(a).all() for a in arrays)
        if len(results) != num_items or not is_sound:
            raise WarmUpError(
                f"the runtime {self.runtime.name!r} gives no usable results for "
                f"{bucket.label}; try another runtime, or export the model again"
            )
        return seconds

    def run_trial(self) -> None:
        """Compute one synthetic item.

        Raises:
            Exception: The runtime does not compute.
        """
        self.run_synthetic(self._trial_bucket)

    def interrupt(self) -> None:
        """Stop the running batch, from another thread; see `Runtime.interrupt`."""
        self.runtime.interrupt()

    def _has_shape(self, bucket: Bucket, array: NDArray[np.float32]) -> bool:
        match bucket.kind:
            case "depth":
                return array.ndim == 2
            case "normals" | "segmentation" as task:
                num_planes = 3 if task == "normals" else self._num_labels
                return array.ndim == 3 and len(array) == num_planes
        return bool(array.shape[-1] == self._embed_dim)
