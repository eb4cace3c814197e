"""What a model's weights say about the images it takes: patches, native size, served shapes."""

import math
from typing import Final

from transformers import Tipsv2Model

from model.graphs import DENSE_TASKS
from model.manifest import Manifest, Output

TOWER_OUTPUTS: Final[tuple[Output, ...]] = ("patches", "values", "cls1", "cls2", "text")
# Rows and columns of patches that the dense heads make one of, at their deepest.
DENSE_PATCHES: Final = 2
# Height and width of common images, relative to the shorter side.
ASPECTS: Final = ((1, 1), (3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9))


def draft_manifest(model: Tipsv2Model, *, name: str, has_dense_heads: bool = False) -> Manifest:
    """What the weights alone say for a manifest; files, parity and origin come later.

    Args:
        model: Both towers.
        name: The model's name for clients.
        has_dense_heads: Depth, normals and segmentation are packaged too. They halve the patch
            grid, so every size must then be a multiple of two patches.

    Raises:
        ValidationError: A name that a manifest cannot have.
    """
    vision = model.vision_model.config
    unit = patch_size(model) * (DENSE_PATCHES if has_dense_heads else 1)
    native = native_size(model) // unit * unit
    return Manifest(
        name=name,
        variant=f"w{vision.hidden_size}d{vision.num_hidden_layers}",
        embed_dim=vision.hidden_size,
        patch_size=patch_size(model),
        native_size=native,
        min_size=unit,
        max_size=4 * native,
        size_multiple=unit,
        shape_buckets=shape_buckets(native, unit),
        max_text_tokens=model.text_model.config.max_position_embeddings,
        temperature=model.temperature.item(),
        outputs=[*TOWER_OUTPUTS, *(DENSE_TASKS if has_dense_heads else ())],
        licence="unknown",
    )


def patch_size(model: Tipsv2Model) -> int:
    """Side of a patch in pixels."""
    size: int = model.vision_model.embeddings.patch_embeddings.projection.stride[0]
    return size


def native_size(model: Tipsv2Model) -> int:
    """Side in pixels of the square whose grid has the position embeddings as they were learnt."""
    num_positions = model.vision_model.embeddings.position_embeddings.shape[1] - 1
    return math.isqrt(num_positions) * patch_size(model)


def shape_buckets(native: int, unit: int) -> list[tuple[int, int]]:
    """The native square and, with the same shorter side, the shapes of common images."""
    buckets = []
    for height, width in ASPECTS:
        scale = native / min(height, width) / unit
        buckets.append((round(height * scale) * unit, round(width * scale) * unit))
    return buckets
