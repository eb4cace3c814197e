"""Windows cover an image, and the last ones end where it ends."""

import numpy as np
import pytest

from service.images.preparation import Windows

NOTEBOOK = Windows.of(448)


def test_windows_are_those_of_the_notebook() -> None:
    assert (NOTEBOOK.side, NOTEBOOK.stride) == (448, 336)
    assert NOTEBOOK.corners((448, 448)) == [(0, 0)]
    assert NOTEBOOK.corners((448, 449)) == [(0, 0), (0, 1)]
    assert NOTEBOOK.corners((448, 784)) == [(0, 0), (0, 336)]
    assert NOTEBOOK.corners((448, 785)) == [(0, 0), (0, 336), (0, 337)]
    assert NOTEBOOK.corners((900, 448)) == [(0, 0), (336, 0), (452, 0)]
    assert len(NOTEBOOK.corners((1000, 1000))) == 9


@pytest.mark.parametrize("size_hw", [(14, 14), (14, 61), (37, 29), (200, 15)])
def test_every_pixel_is_in_a_window(size_hw: tuple[int, int]) -> None:
    hits_HW = np.zeros(size_hw, int)
    for top, left in Windows.of(14).corners(size_hw):
        hits_HW[top : top + 14, left : left + 14] += 1
        assert top + 14 <= size_hw[0]
        assert left + 14 <= size_hw[1]
    assert hits_HW.min() > 0


def test_a_image_smaller_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="fit"):
        NOTEBOOK.corners((447, 900))
