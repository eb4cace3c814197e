"""A lane turns batches into one set of outputs for each item, and refuses a broken runtime."""

from typing import TYPE_CHECKING

import numpy as np
import pytest

from service.lane import TEXT_OUTPUT, Lane, WarmUpError
from service.work import Bucket

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

IMAGE = Bucket("image", (28, 42))
TEXT = Bucket("text", (8,))


def test_every_picture_has_its_own_outputs(runtime: "FakeRuntime") -> None:
    pixels = [np.full((3, 28, 42), value, np.float32) for value in (0.0, 1.0)]
    dark, bright = Lane(runtime).run(IMAGE, pixels)
    assert dark["patches"].shape == (6, 8)
    assert dark["cls1"].shape == (8,)
    np.testing.assert_array_equal(dark["values"], 2 * dark["patches"] + 1)
    alone = Lane(runtime).run(IMAGE, pixels[1:])[0]
    np.testing.assert_array_equal(bright["patches"], alone["patches"])


def test_texts_of_several_lengths_are_padded_and_masked(runtime: "FakeRuntime") -> None:
    rows = [np.array([3, 4, 5]), np.array([6])]
    together = Lane(runtime).run(TEXT, rows)
    for row, outputs in zip(rows, together, strict=True):
        alone = Lane(runtime).run(TEXT, [row])[0]
        np.testing.assert_allclose(outputs[TEXT_OUTPUT], alone[TEXT_OUTPUT], rtol=1e-6)
        assert outputs[TEXT_OUTPUT].base is None, "a row in the cache must not hold its batch"


def test_a_sound_runtime_warms_up(runtime: "FakeRuntime") -> None:
    Lane(runtime).warm_up([IMAGE, TEXT], embed_dim=8)
    assert (runtime.num_images, runtime.num_texts) == (1, 1)


def test_a_wrong_width_stops_the_start(runtime: "FakeRuntime") -> None:
    with pytest.raises(WarmUpError, match="image 28x42"):
        Lane(runtime).warm_up([IMAGE], embed_dim=9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_stop_the_start(runtime: "FakeRuntime", value: float) -> None:
    runtime._mix[0, 0] = value
    with pytest.raises(WarmUpError):
        Lane(runtime).warm_up([IMAGE], embed_dim=8)
