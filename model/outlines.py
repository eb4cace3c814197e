"""Give maps of a patch grid the outlines of their image.

A place of the image takes the mean of the patches around it, weighted by how near they are and how
alike in colour. The weights are made of the image alone, so they fit maps of any model and meaning.

Shapes: h w patch grid, K maps, Y X the finer grid with F x F places for each patch; S the places of
a patch in raster order, J the patches of the window around it.
"""

from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

# A place is about so many pixels of the model's input across, but there are at most so many of them
# across a patch.
PLACE_PIXELS: Final = 4
MAX_PLACES: Final = 8
# Patches on each side of a place's own patch.
REACH: Final = 2
# Squared width of the weights in the colours of an image, each of which is scaled to a variance of
# 1/3.
COLOUR_VARIANCE: Final = 0.2
# Of a weight: e to this power is far above the least float32.
LEAST_EXPONENT: Final = np.float32(-64)
# Weights in memory at a time: 256 KiB stay in a core's cache.
BAND_WEIGHTS: Final = 64 * 1024
# Values of all maps of an image: 2 MiB of float32.
MAX_VALUES: Final = 512 * 1024


def make_guide(image: Image.Image, patch_size: int) -> NDArray[np.uint8]:
    """The colours that guide maps: luma and two chroma channels, uint8 [3, Y, X].

    Args:
        image: As the model sees it, of mode RGB or L.
        patch_size: Side of a patch; the image's sides are multiples of it.
    """
    num_places = min(MAX_PLACES, max(1, round(patch_size / PLACE_PIXELS)))
    size = (image.width * num_places // patch_size, image.height * num_places // patch_size)
    # `reduce` does the same faster where it can.
    whole = image.width // size[0], image.height // size[1]
    is_whole = (size[0] * whole[0], size[1] * whole[1]) == image.size
    small = image.reduce(whole) if is_whole else image.resize(size, Image.Resampling.BOX)
    colours = small.convert("RGB").convert("YCbCr")
    return np.ascontiguousarray(np.moveaxis(np.asarray(colours), -1, 0))


def outline(maps_Khw: Floats, guide_3YX: NDArray[np.uint8]) -> Floats:
    """Scale maps to the grid of a guide: float32 [K, Y, X].

    The grid is coarser if the maps would have too many values.

    Source: joint bilateral upsampling (J. Kopf et al., 2007), with patches' mean colours as keys
    and a parabola instead of a Gaussian of the distance.
    """
    num_maps, rows, columns = maps_Khw.shape
    factor = guide_3YX.shape[1] // rows
    while factor > 1 and maps_Khw.size * factor**2 > MAX_VALUES:
        factor //= 2
    if factor <= 1:
        return maps_Khw
    key_hwJ5, query_hw5S = _colours(guide_3YX, (rows, columns), factor)
    # The last map is 1 at every patch, so it becomes the sum of the weights inside the grid.
    one_hw1 = np.ones((rows, columns, 1), np.float32)
    window_hwJK = _windows(np.concatenate([np.moveaxis(maps_Khw, 0, -1), one_hw1], axis=-1))
    near_JS = _nearness(factor)
    value_hwKS = np.empty((rows, columns, num_maps + 1, factor**2), np.float32)
    num_rows = max(1, BAND_WEIGHTS // (columns * near_JS.size))
    for top in range(0, rows, num_rows):
        band = slice(top, top + num_rows)
        weight_hwJS = key_hwJ5[band] @ query_hw5S[band]
        # A colour that is far from those of all patches takes them by distance.
        np.maximum(weight_hwJS, LEAST_EXPONENT, out=weight_hwJS)
        np.exp(weight_hwJS, out=weight_hwJS)
        weight_hwJS *= near_JS
        np.matmul(window_hwJK[band].swapaxes(-1, -2), weight_hwJS, out=value_hwKS[band])
    value_hwKS[..., :-1, :] /= value_hwKS[..., -1:, :]
    value_hwKFF = value_hwKS.reshape(rows, columns, -1, factor, factor)[:, :, :-1]
    value_KhFwF = value_hwKFF.transpose(2, 0, 3, 1, 4)
    return value_KhFwF.reshape(num_maps, rows * factor, columns * factor)


def _colours(
    guide_3YX: NDArray[np.uint8], grid_hw: tuple[int, int], factor: int
) -> tuple[Floats, Floats]:
    """Patches of windows [h, w, J, 5] and places [h, w, 5, S] by their colours.

    The product of a patch k and a place q is -|q - k|^2 / 2. Places are the last axis, for speed.
    """
    rows, columns = grid_hw
    fine = guide_3YX.shape[1] // rows // factor
    blocks = guide_3YX.reshape(3, rows * factor, fine, columns * factor, fine)
    colour_3YX = blocks.mean(axis=(2, 4), dtype=np.float32)
    mean_3, deviation_3 = colour_3YX.mean(axis=(1, 2)), colour_3YX.std(axis=(1, 2))
    # One grey level, so that the noise of an even channel stays small.
    scale_3 = 1 / (np.sqrt(3 * COLOUR_VARIANCE) * np.maximum(deviation_3, 1))
    colour_3YX -= mean_3[:, None, None]
    colour_3YX *= scale_3[:, None, None].astype(np.float32)
    place_hw3S = colour_3YX.reshape(3, rows, factor, columns, factor).transpose(1, 3, 0, 2, 4)
    place_hw3S = place_hw3S.reshape(rows, columns, 3, factor**2)
    patch_hw3 = place_hw3S.mean(axis=-1)
    place_hw1S = np.square(place_hw3S).sum(axis=-2, keepdims=True) / -2
    patch_hw1 = np.square(patch_hw3).sum(axis=-1, keepdims=True) / -2
    query_hw5S = np.concatenate([place_hw3S, np.ones_like(place_hw1S), place_hw1S], axis=-2)
    key_hw5 = np.concatenate([patch_hw3, patch_hw1, np.ones_like(patch_hw1)], axis=-1)
    return _windows(key_hw5), query_hw5S


def _windows(values_hwC: Floats) -> Floats:
    """Values of the patches around every patch, [h, w, J, C]; 0 outside the grid."""
    rows, columns, num_values = values_hwC.shape
    padded = np.zeros((rows + 2 * REACH, columns + 2 * REACH, num_values), np.float32)
    padded[REACH:-REACH, REACH:-REACH] = values_hwC
    side = 2 * REACH + 1
    window_hwCij = sliding_window_view(padded, (side, side), axis=(0, 1))
    window_hwijC = np.moveaxis(window_hwCij, 2, -1)
    return np.ascontiguousarray(window_hwijC).reshape(*values_hwC.shape[:2], side**2, -1)


def _nearness(factor: int) -> Floats:
    """Of a patch's places to the patches around it, [J, S]; 0 at the window's edge."""
    place_F = (np.arange(factor, dtype=np.float32) + 0.5) / factor - 0.5
    distance_Fi = (place_F[:, None] - np.arange(-REACH, REACH + 1)) / (REACH + 0.5)
    near_Fi = (1 - np.square(distance_Fi)).astype(np.float32)
    near_iF = near_Fi.T
    near_ijFF = near_iF[:, None, :, None] * near_iF[None, :, None, :]
    near_JS: Floats = near_ijFF.reshape(-1, factor**2)
    return near_JS
