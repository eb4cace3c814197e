"""Depth against transformers, normals against the released notebook, and broken values."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.dense_maps import depth_map, make_map, normal_map

SIZES = [None, (448, 448), (31, 77), (16, 24), (1, 1), (5, 300)]
DEPTH_hw = np.random.default_rng(0).random((16, 24), dtype=np.float32) * 10
NORMALS_3hw = np.random.default_rng(1).standard_normal((3, 16, 24), dtype=np.float32)


@pytest.fixture(scope="module")
def reference() -> Any:
    """The processor whose post-processing is the reference."""
    from transformers import Tipsv2DptImageProcessor  # noqa: PLC0415 - only these tests need it

    return Tipsv2DptImageProcessor()


@pytest.mark.parametrize("size_hw", SIZES)
def test_depth_equals_transformers(reference: Any, size_hw: tuple[int, int] | None) -> None:
    import torch  # noqa: PLC0415 - as above

    outputs = SimpleNamespace(predicted_depth=torch.from_numpy(DEPTH_hw)[None])
    sizes = None if size_hw is None else [size_hw]
    (wanted,) = reference.post_process_depth_estimation(outputs, target_sizes=sizes)
    made = depth_map(DEPTH_hw, size_hw)
    assert made.dtype == np.float32
    wanted_HW = wanted["predicted_depth"].numpy().reshape(made.shape)
    np.testing.assert_allclose(made, wanted_HW, atol=5e-5)
    assert DEPTH_hw.min() - 1e-5 <= made.min() <= made.max() <= DEPTH_hw.max() + 1e-5


@pytest.mark.parametrize("size_hw", SIZES)
def test_normals_are_the_notebooks(size_hw: tuple[int, int] | None) -> None:
    import torch  # noqa: PLC0415 - as above
    from torch.nn import functional as F  # noqa: PLC0415

    wanted_13hw = F.normalize(torch.from_numpy(NORMALS_3hw)[None], dim=1)
    if size_hw is not None:
        scaled_13HW = F.interpolate(wanted_13hw, size_hw, mode="bicubic", align_corners=False)
        wanted_13hw = F.normalize(scaled_13HW, dim=1)
    made = normal_map(NORMALS_3hw, size_hw)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, wanted_13hw[0].permute(1, 2, 0).numpy(), atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(made, axis=-1), 1, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from([0.0, 1e-38, -1e-38, 1e-20, 1.0, -1.0, 1e20, 3e38, -3e38]),
        min_size=12,
        max_size=12,
    ),
    st.sampled_from([None, (3, 5), (1, 1), (9, 2)]),
)
def test_every_finite_vector_gives_finite_normals(
    values: list[float], size_hw: tuple[int, int] | None
) -> None:
    made = normal_map(np.array(values, np.float32).reshape(3, 2, 2), size_hw)
    length_HW = np.linalg.norm(made, axis=-1)
    assert np.isfinite(made).all()
    assert ((length_HW < 1e-6) | (np.abs(length_HW - 1) < 1e-4)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        depth_map(np.array([[value]], np.float32))
    with pytest.raises(ValueError, match="finite"):
        normal_map(np.full((3, 1, 1), value, np.float32))


@pytest.mark.parametrize(
    ("raw", "size_hw"),
    [
        (np.ones((2, 2, 2), np.float32), None),
        (np.ones((0, 2), np.float32), None),
        (np.ones((2, 2), np.float32), (0, 4)),
    ],
)
def test_wrong_shapes_are_refused(
    raw: NDArray[np.float32], size_hw: tuple[int, int] | None
) -> None:
    with pytest.raises(ValueError, match=r"shape|pixel"):
        make_map("depth", raw, size_hw)
    with pytest.raises(ValueError, match="shape"):
        make_map("normals", raw, None)
