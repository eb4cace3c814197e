"""Colours of a scale: no step looks larger than another, and grey prints keep the order."""

import numpy as np

from service.outputs.maps import colour_table
from service.outputs.png import to_oklab


def test_lightness_falls_evenly_so_that_the_order_can_be_seen_without_colour() -> None:
    lightness = to_oklab(colour_table())[:, 0]
    steps = -np.diff(lightness)
    assert steps.min() > -1e-4
    assert steps.max() < 3 * steps.mean()
    assert lightness[0] > 0.9
    assert lightness[-1] < 0.3


def test_no_step_stands_out() -> None:
    steps = np.linalg.norm(np.diff(to_oklab(colour_table()), axis=0), axis=1)
    assert steps.max() < 3 * steps.mean()
    assert len(np.unique(colour_table(), axis=0)) == 256
