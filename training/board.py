"""TensorBoard for a run: scalars of the log, and what the model sees in a few fixed scenes.

Each scene is one row of four images: itself, its patches in three colours (their first principal
components), the mask that is predicted among all candidate names, and the true one.

Shapes: B scenes, N patches in row-major order, D width, S side in pixels, h w patch grid.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.segmentation import segment
from training.data.scenes import Scene
from training.evaluate.encoder import SceneEncoder
from training.evaluate.zero_shot_segmentation import class_ids

BOARD_FOLDER = "tensorboard"
_GOLDEN = 0.618034


def pca_colours(patches_BND: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours [B, N, 3] of patches: their first three principal components over all images.

    A component's sign is free; it is turned so that its distribution leans to the right, which
    keeps colours from flipping between two validations.
    """
    flat = patches_BND.reshape(-1, patches_BND.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    axes_3D = np.linalg.svd(flat, full_matrices=False)[2][:3]
    parts = flat @ axes_3D.T
    parts = parts * np.where((parts**3).sum(0) < 0, -1.0, 1.0)
    low, high = np.percentile(parts, [2, 98], axis=0)
    unit = np.clip((parts - low) / np.maximum(high - low, 1e-9), 0, 1)
    colours = np.zeros((len(flat), 3), np.uint8)
    colours[:, : parts.shape[1]] = np.round(255 * unit)
    return colours.reshape(*patches_BND.shape[:2], 3)


def label_colours(labels_SS: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Colours [S, S, 3] of labels: 0 is black, every other number has a hue of its own."""
    hue = (labels_SS.astype(np.float64) * _GOLDEN) % 1.0
    channels = [np.clip(np.abs((hue * 6 + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
    bright = np.stack(channels, axis=-1) * 0.8 + 0.2
    return np.where(labels_SS[..., None] > 0, np.round(255 * bright), 0).astype(np.uint8)


def scene_panel(
    model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
    scenes: Sequence[Scene],
    names: Sequence[str],
) -> NDArray[np.uint8]:
    """Draw scenes of one size, one below the other: uint8 [B * S, 4 * S, 3].

    Args:
        model: In evaluation mode, on the CPU.
        tokenizer: Its own.
        scenes: At least one.
        names: Candidates of the predicted mask; all that the scenes show must be among them.
    """
    encoder = SceneEncoder(model, tokenizer, scenes)
    classes_KD, ids_K = encoder.classes(names, "none"), class_ids(names)
    side = len(scenes[0].mask_SS)
    patches_BND = np.stack([encoder.feature("patches", scene) for scene in scenes])
    grid = round(patches_BND.shape[1] ** 0.5)
    rows = []
    for scene, patches_ND, colours_N3 in zip(
        scenes, patches_BND, pca_colours(patches_BND), strict=True
    ):
        found = segment(
            patches_ND, classes_KD, grid_hw=(grid, grid), size_hw=(side, side)
        ).labels_HW
        colours = colours_N3.reshape(grid, grid, 3)
        zoomed = colours.repeat(side // grid, axis=0).repeat(side // grid, axis=1)
        predicted, true = label_colours(ids_K[found - 1]), label_colours(scene.mask_SS)
        rows.append(np.concatenate([scene.pixels_SS3, zoomed, predicted, true], axis=1))
    return np.concatenate(rows)


class Board:
    """Writes a run's TensorBoard files; close it at the end.

    Args:
        run: The run's folder.
        from_step: Steps that were done; what an earlier start wrote after them is hidden.
    """

    def __init__(self, run: Path, *, from_step: int = 0) -> None:
        self._writer = SummaryWriter(run / BOARD_FOLDER, purge_step=from_step + 1)

    def add_row(self, row: Mapping[str, float]) -> None:
        """Add a row of the log: losses, norms and scores by its "step"."""
        for name, value in row.items():
            if name not in ("step", "time_s"):
                tag = f"score/{name}" if "/" in name else f"train/{name}"
                self._writer.add_scalar(tag, value, int(row["step"]))

    def add_panel(self, step: int, panel_HW3: NDArray[np.uint8]) -> None:
        """Add the drawn scenes of a validation."""
        self._writer.add_image("scenes", panel_HW3, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
