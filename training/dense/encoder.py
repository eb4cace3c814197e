"""A package as a frozen encoder: embeddings of images.

Shapes: P images, B batch, H W pixels, D embedding width, h w patch rows and columns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from model.graphs import PatchOutput
from model.package import ModelPackage
from model.preprocess import Fit, prepare_image, target_size
from model.runtime.base import Runtime
from model.runtime.load import load_runtime

_BATCH: Final = 8
PATCHES: Final[tuple[PatchOutput, ...]] = ("patches",)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """Embeddings of images: float16 first CLS token and patches of the last layer."""

    cls_PD: NDArray[np.float16]
    patches_PhwD: NDArray[np.float16]


@dataclass(frozen=True, slots=True, eq=False)
class FrozenEncoder:
    """A package with its runtime loaded."""

    package: ModelPackage
    runtime: Runtime

    @classmethod
    def load(cls, package: ModelPackage) -> Self:
        """Load the package's usual runtime."""
        return cls(package, load_runtime(package))

    def embed(self, images: Iterable[NDArray[np.uint8]]) -> Embeddings:
        """Embed images [H, W, 3] at the native size, as the service does for maps by default."""
        side = self.package.manifest.native_size
        waiting, parts = iter(images), []
        while batch := list(islice(waiting, _BATCH)):
            parts.append(self._encode([prepare_image(image, (side, side)) for image in batch]))
        return Embeddings(
            cls_PD=np.concatenate([part.cls_PD for part in parts]),
            patches_PhwD=np.concatenate([part.patches_PhwD for part in parts]),
        )

    def as_served(self, image_HW3: NDArray[np.uint8], fit: Fit) -> Embeddings:
        """Embed one image at the size at which the service does for a dense head."""
        manifest = self.package.manifest
        height, width = image_HW3.shape[:2]
        size_hw = target_size(
            height,
            width,
            resolution=manifest.map_side(manifest.native_size),
            fit=fit,
            multiple=manifest.map_multiple,
        )
        return self._encode([prepare_image(image_HW3, size_hw)])

    def _encode(self, planes: Sequence[NDArray[np.float32]]) -> Embeddings:
        output = self.runtime.encode_images(np.stack(planes), patch_outputs=PATCHES)
        patches_BND = output.patches_BND.astype(np.float16)
        return Embeddings(
            cls_PD=output.cls1_BD.astype(np.float16),
            patches_PhwD=patches_BND.reshape(len(planes), *output.grid_hw, -1),
        )
