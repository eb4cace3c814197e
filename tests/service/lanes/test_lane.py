"""A lane computes one set of outputs for each item of a batch, and detects a broken runtime."""

import numpy as np
import pytest

from model.graphs import DenseTask
from service.lanes.lane import TEXT_OUTPUT, Lane, WarmUpError, collate
from service.lanes.work import Bucket
from tests.service.conftest import FakeRuntime

IMAGE = Bucket("image", (28, 42))
TEXT = Bucket("text", (8,))


@pytest.fixture
def lane(runtime: FakeRuntime) -> Lane:
    return Lane(runtime, embed_dim=8, trial_bucket=IMAGE, num_labels=3)


def test_every_image_has_its_own_outputs(lane: Lane) -> None:
    pixels = [np.full((3, 28, 42), value, np.float32) for value in (0.0, 1.0)]
    dark, bright = lane.run(IMAGE, collate(IMAGE, pixels))
    assert dark["patches"].shape == (6, 8)
    assert dark["cls1"].shape == (8,)
    np.testing.assert_array_equal(dark["values"], 2 * dark["patches"] + 1)
    alone = lane.run(IMAGE, collate(IMAGE, pixels[1:]))[0]
    np.testing.assert_array_equal(bright["patches"], alone["patches"])


def test_a_text_in_a_padded_batch_has_the_embedding_that_it_has_alone(lane: Lane) -> None:
    rows = [np.array([3, 4, 5]), np.array([6])]
    together = lane.run(TEXT, collate(TEXT, rows))
    for row, outputs in zip(rows, together, strict=True):
        alone = lane.run(TEXT, collate(TEXT, [row]))[0]
        np.testing.assert_allclose(outputs[TEXT_OUTPUT], alone[TEXT_OUTPUT], rtol=1e-6)
        assert outputs[TEXT_OUTPUT].base is None, "a row in the cache must not hold its batch"


@pytest.mark.parametrize(
    ("kind", "shape", "value"),
    [
        ("depth", (1, 2, 8, 8), 1.0),
        ("depth", (1, 8, 8), np.nan),
        ("normals", (1, 2, 8, 8), 1.0),
        ("normals", (1, 3, 8, 8), np.nan),
        ("segmentation", (1, 4, 8, 8), 1.0),
        ("segmentation", (1, 3, 8, 8), np.nan),
    ],
)
def test_a_broken_head_fails_the_synthetic_run(
    lane: Lane,
    runtime: FakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
    kind: DenseTask,
    shape: tuple[int, ...],
    value: float,
) -> None:
    lane.run_synthetic(Bucket(kind, (28, 28)), 2)
    monkeypatch.setattr(runtime, "estimate", lambda *_: np.full(shape, value, np.float32))
    with pytest.raises(WarmUpError, match=f"{kind} 28x28"):
        lane.run_synthetic(Bucket(kind, (28, 28)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_outputs_fail_the_trial(lane: Lane, runtime: FakeRuntime, value: float) -> None:
    runtime._mix[0, 0] = value
    with pytest.raises(WarmUpError):
        lane.run_trial()
