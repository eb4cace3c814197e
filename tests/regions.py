"""Connected regions by SciPy, for tests of outlines and instances."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

Flags = NDArray[np.bool_]
BY_CORNERS = np.ones((3, 3), np.bool_)


def regions_without_holes(is_in_HW: Flags, min_area: float, *, is_filled: bool) -> list[Flags]:
    """The regions that are connected by edges, without small holes, and without small regions.

    Args:
        is_in_HW: The pixels of all regions.
        min_area: Holes with fewer pixels are filled; then regions with fewer are left out.
        is_filled: Whether all holes are filled.
    """
    numbers_HW, count = ndimage.label(is_in_HW)
    found = []
    for number in range(1, count + 1):
        region_HW: Flags = numbers_HW == number
        # A border joins what is outside.
        outside_HW, num_parts = ndimage.label(~np.pad(region_HW, 1), BY_CORNERS)
        for part in range(1, num_parts + 1):
            hole_HW = outside_HW[1:-1, 1:-1] == part
            if part != outside_HW[0, 0] and (is_filled or hole_HW.sum() < min_area):
                region_HW |= hole_HW
        found.append(region_HW)
    return [one for one in found if one.sum() >= min_area]
