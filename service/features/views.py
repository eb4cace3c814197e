"""From patch embeddings to maps that can be looked at: fitted once, then drawn for each image.

Shape legend: N patches, D width, h w patch grid, H W pixels of the map, C channels, K groups.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.segmentation import label_pixels, upsample_bilinear
from service.features.components import fit_components
from service.features.groups import find_groups, squared_distances
from service.messages import FloatArray
from service.view_messages import VisualizeFeaturesRequest

DEFAULT_GROUPS: Final = 6
DEFAULT_SEED: Final = 0
# Steepness of the curve that makes colours of whitened components.
STEEPNESS: Final = 2.0

# From embeddings [N, D], grid and size to the map [H, W] or [H, W, 3].
View = Callable[[FloatArray, tuple[int, int], tuple[int, int]], NDArray[Any]]


def fit_view(request: VisualizeFeaturesRequest, features: Sequence[FloatArray]) -> View:
    """Find components or groups over all of these embeddings [N, D].

    Source: colours are `sigmoid(2 x)` of PCA(3, whiten), as in the demonstration notebook of
    google-deepmind/tips; the first component from least to greatest, and groups by distances that
    are scaled before they are compared, as in its demonstration page.
    """
    together_ND = features[0] if len(features) == 1 else np.concatenate(features)
    if request.kind == "groups":
        return _groups_view(together_ND, request)
    components = fit_components(together_ND, 3 if request.kind == "colors" else 1)
    if request.kind == "colors":
        return lambda features_ND, grid_hw, size_hw: _scale(
            _sigmoid(STEEPNESS * components.project(features_ND)), grid_hw, size_hw
        )
    projected_N1 = components.project(together_ND)
    least, span = projected_N1.min(), np.ptp(projected_N1)

    def view(
        features_ND: FloatArray, grid_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> FloatArray:
        share_N1 = (components.project(features_ND) - least) / (span or np.float32(1))
        return _scale(np.clip(share_N1, 0, 1), grid_hw, size_hw)[..., 0]

    return view


def _groups_view(together_ND: FloatArray, request: VisualizeFeaturesRequest) -> View:
    num_groups = DEFAULT_GROUPS if request.group_count is None else request.group_count
    seed = DEFAULT_SEED if request.seed is None else request.seed
    centres_KD = find_groups(together_ND, num_groups, seed)

    def view(
        features_ND: FloatArray, grid_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> NDArray[np.uint16]:
        nearness_NK = -np.sqrt(squared_distances(features_ND, centres_KD))
        nearness_hwK = nearness_NK.reshape(*grid_hw, -1)
        if grid_hw == size_hw:
            labels_hw: NDArray[np.uint16] = (nearness_hwK.argmax(axis=-1) + 1).astype(np.uint16)
            return labels_hw
        found = label_pixels(nearness_hwK, size_hw, with_scores=False)
        return found.labels_HW.astype(np.uint16, copy=False)

    return view


def _scale(values_NC: FloatArray, grid_hw: tuple[int, int], size_hw: tuple[int, int]) -> FloatArray:
    """Bilinearly to the size of the map, [H, W, C]."""
    if grid_hw == size_hw:
        return values_NC.reshape(*grid_hw, -1)
    maps_Chw = values_NC.T.reshape(-1, *grid_hw)
    return np.ascontiguousarray(np.moveaxis(upsample_bilinear(maps_Chw, size_hw), 0, -1))


def _sigmoid(values: FloatArray) -> FloatArray:
    # By tanh, which overflows nowhere.
    share: FloatArray = (np.tanh(values / 2) + np.float32(1)) / np.float32(2)
    return share
