"""A package as a frozen encoder: embeddings of renders, and the same graph with shuffled weights.

Shapes: P images, B batch, S side of an image, D embedding width, h w patch rows and columns.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from model.export.tracing import save_graph
from model.files import atomic_file
from model.graphs import VISION_FILE, PatchOutput
from model.head import vision_digest
from model.package import ModelPackage, write_manifest
from model.preprocess import prepare_image
from model.runtime.base import Runtime
from model.runtime.load import load_runtime

_BATCH: Final = 8
PATCHES: Final[tuple[PatchOutput, ...]] = ("patches",)
# Smaller tensors are shapes and axes.
_MIN_WEIGHTS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """Embeddings of images: float16 first CLS token and patches of the last layer."""

    cls_PD: NDArray[np.float16]
    patches_PhwD: NDArray[np.float16]

    @classmethod
    def join(cls, parts: Iterable[Self]) -> Self:
        """All images of several parts."""
        parts = list(parts)
        return cls(
            cls_PD=np.concatenate([part.cls_PD for part in parts]),
            patches_PhwD=np.concatenate([part.patches_PhwD for part in parts]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class FrozenEncoder:
    """A package with its runtime loaded."""

    package: ModelPackage
    runtime: Runtime

    @classmethod
    def load(cls, package: ModelPackage) -> Self:
        """Load the package's usual runtime."""
        return cls(package, load_runtime(package))

    def embed(self, images_PSS3: NDArray[np.uint8]) -> Embeddings:
        """Embed images at the native size, as the service does for maps by default."""
        side = self.package.manifest.native_size
        parts = []
        for first in range(0, len(images_PSS3), _BATCH):
            batch = images_PSS3[first : first + _BATCH]
            pixels_B3HW = np.stack([prepare_image(image, (side, side)) for image in batch])
            output = self.runtime.encode_images(pixels_B3HW, patch_outputs=PATCHES)
            patches_BND = output.patches_BND.astype(np.float16)
            parts.append(
                Embeddings(
                    cls_PD=output.cls1_BD.astype(np.float16),
                    patches_PhwD=patches_BND.reshape(len(batch), *output.grid_hw, -1),
                )
            )
        return Embeddings.join(parts)

    def cached(self, images_PSS3: NDArray[np.uint8], folder: Path, name: str) -> Embeddings:
        """Embed images, or read what an earlier run has kept under this name."""
        digest = vision_digest(self.package.manifest)
        path = folder / f"embeddings-{digest[:12]}-{name}.npz"
        if not path.exists():
            found = self.embed(images_PSS3)
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, cls=found.cls_PD, patches=found.patches_PhwD)
        with np.load(path, allow_pickle=False) as file:
            return Embeddings(cls_PD=file["cls"], patches_PhwD=file["patches"])


def shuffled(package: ModelPackage, folder: Path, seed: int = 0) -> ModelPackage:
    """Write a package whose vision graph has the same weights in random places.

    Each tensor keeps its numbers, so layers keep their scale; what was learnt is gone.

    Args:
        package: Is copied.
        folder: Of the new package; an older one is replaced.
        seed: Of the order.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(package.path, folder)
    rng = np.random.default_rng(seed)
    path = folder / VISION_FILE
    graph = onnx_ir.load(path)
    for name, value in graph.graph.initializers.items():
        weight = value.const_value
        if weight is not None and weight.dtype.is_floating_point() and weight.size >= _MIN_WEIGHTS:
            numbers = weight.numpy()
            mixed = rng.permutation(numbers.reshape(-1)).reshape(numbers.shape)
            value.const_value = onnx_ir.tensor(mixed, name=name)
    path.unlink()
    save_graph(graph, path)
    unproven = package.manifest.model_copy(update={"parity": []})
    return write_manifest(folder, unproven)
