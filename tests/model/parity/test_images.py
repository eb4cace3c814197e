"""The images are real, small, sourced, and never both judge and calibration."""

import numpy as np
import pytest

from model.parity.images import (
    FOLDER,
    calibration_images,
    gate_images,
    image_batch,
)

MAX_BYTES = 250_000


def test_no_image_is_calibrated_on_and_judged_on() -> None:
    gate = {image.tobytes() for image in gate_images()}
    assert len(gate) == 8
    assert not gate & {image.tobytes() for image in calibration_images()}
    names = [{path.name for path in (FOLDER / kind).iterdir()} for kind in ("gate", "calibration")]
    assert not names[0] & names[1]


def test_every_image_has_its_source_and_all_are_small() -> None:
    paths = list(FOLDER.glob("*/*"))
    sources = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in paths if f"{path.name}`" not in sources] == []
    assert sum(path.stat().st_size for path in paths) < MAX_BYTES


def test_a_batch_holds_different_images_and_starts_over_after_the_last() -> None:
    pixels_B3HW = image_batch(gate_images(), (28, 42), batch=9)
    assert pixels_B3HW.shape == (9, 3, 28, 42)
    assert pixels_B3HW.dtype == np.float32
    assert 0 <= pixels_B3HW.min() < pixels_B3HW.max() <= 1
    assert len({item.tobytes() for item in pixels_B3HW}) == 8
    np.testing.assert_array_equal(pixels_B3HW[0], pixels_B3HW[8])
    later_B3HW = image_batch(gate_images(), (28, 42), batch=1, first=3)
    np.testing.assert_array_equal(later_B3HW[0], pixels_B3HW[3])


def test_images_cannot_be_changed_by_whoever_reads_them() -> None:
    with pytest.raises(ValueError, match="read-only"):
        gate_images()[0][0, 0, 0] = 1
