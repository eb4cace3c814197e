"""Masks whose labels the device makes equal those made of patches, and only those are made there.

Shapes: B batch, N patches, D width, H W pixels.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.graphs import PATCH_OUTPUTS, DenseTask, PatchOutput
from model.reduction import Reduction
from model.runtime.base import VisionOutput
from model.runtime.reducer import OnnxReducer, open_reducer
from service.data_plane import DataPlane
from service.errors import Unavailable
from service.messages import ClassExample, SegmentClass, SegmentImagesRequest
from tests.service.conftest import Encode, FakeRuntime, MakePlane, call

NAMES = ("dog", "sky", "grass", "sea")


class ReducingRuntime(FakeRuntime):
    """A fake runtime whose device, the host, runs reductions."""

    can_reduce = True

    def __init__(self) -> None:
        super().__init__()
        opened = open_reducer("cpu")
        assert opened is not None
        self.reducer: OnnxReducer = opened
        self.num_reduced = 0
        self.is_memory_full = False

    def encode_images(
        self,
        pixels_B3HW: NDArray[np.float32],
        tasks: Sequence[DenseTask] = (),
        patch_outputs: Collection[PatchOutput] = PATCH_OUTPUTS,
        reductions: Sequence[Reduction | None] = (),
    ) -> VisionOutput:
        """As the fake runtime, and reductions."""
        output = super().encode_images(pixels_B3HW, tasks, patch_outputs)
        if not reductions:
            return output
        if self.is_memory_full:
            raise RuntimeError("Available memory of 1 is smaller than requested bytes of 2")
        self.num_reduced += sum(r is not None for r in reductions)
        every = super().encode_images(pixels_B3HW, tasks)
        rows_of = {"patches": every.patches_BND, "values": every.values_BND}
        reduced = [
            None if r is None else self.reducer.run_on_copy(r, rows_of[r.source][i].copy())
            for i, r in enumerate(reductions)
        ]
        return VisionOutput(
            cls1_BD=output.cls1_BD,
            cls2_BD=output.cls2_BD,
            patches_BND=output.patches_BND,
            values_BND=output.values_BND,
            grid_hw=output.grid_hw,
            reduced=reduced,
        )


@pytest.fixture
def runtime() -> FakeRuntime:
    return ReducingRuntime()


@pytest.fixture
def able(runtime: FakeRuntime) -> ReducingRuntime:
    assert isinstance(runtime, ReducingRuntime)
    return runtime


@pytest.fixture
def plane(make_plane: MakePlane) -> DataPlane:
    return make_plane(max_images_per_request=8, max_queue_patches=4096)


def request(images: tuple[Any, ...], **change: Any) -> SegmentImagesRequest:
    classes = tuple(SegmentClass(name=name) for name in NAMES)
    return SegmentImagesRequest(**{"images": images, "classes": classes, **change})


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"features": "patches"},
        {"size": "model"},
        {"size": "patch"},
        {"background_threshold": 0.3},
        {"background_classes": (SegmentClass(name="water"), SegmentClass(name="stone"))},
        {"background_classes": (SegmentClass(name="water"),), "background_threshold": 0.2},
        {"templates": "tcl"},
        {"fit": "squash"},
        {"include_class_scores": True, "background_threshold": 0.2},
        {"include_instances": True, "min_area_share": 0.01},
    ],
    ids=str,
)
async def test_the_second_mask_of_the_same_classes_is_made_on_the_device_and_equal(
    plane: DataPlane, able: ReducingRuntime, encode_image: Encode, change: dict[str, Any]
) -> None:
    images = tuple(encode_image(size=size) for size in ((61, 43), (28, 28), (43, 61)))
    first = await plane.segment_images(request(images, **change), call())
    assert able.num_reduced == 0, "texts and images are encoded at the same time"
    able.patch_outputs.clear()
    second = await plane.segment_images(request(images, **change), call())
    assert able.num_reduced == 3
    for before, after in zip(first.segmentations, second.segmentations, strict=True):
        assert after.labels_HW.dtype == before.labels_HW.dtype == np.uint8
        np.testing.assert_array_equal(after.labels_HW, before.labels_HW)
        assert after.area_shares == before.area_shares
        assert after.scores_HW is None
        np.testing.assert_allclose(after.class_scores, before.class_scores, atol=1e-4)
        assert len(after.class_scores) == 4 * bool(change.get("include_class_scores"))
        assert [i.counts.tolist() for i in after.instances] == [
            i.counts.tolist() for i in before.instances
        ]
    assert () in able.patch_outputs, "the lane returned no patches"


POINT = ClassExample(point=(3.0, 3.0))


@pytest.mark.parametrize(
    "change",
    [
        {"include_scores": True},
        {"mode": "slide"},
        {"classes": (SegmentClass(name="spot", examples=(POINT,)),)},
        {"classes": tuple(SegmentClass(name=f"class {n}") for n in range(256))},
    ],
    ids=["scores", "slide", "examples", "many"],
)
async def test_what_needs_more_than_labels_is_made_of_patches(
    make_plane: MakePlane, able: ReducingRuntime, encode_image: Encode, change: dict[str, Any]
) -> None:
    plane = make_plane(max_classes_per_request=300, max_queue_patches=4096)
    for _ in range(2):
        answer = await plane.segment_images(request((encode_image(),), **change), call())
        assert answer.segmentations[0].labels_HW.size
    assert able.num_reduced == 0


async def test_a_device_without_memory_for_a_reduction_returns_the_patches(
    plane: DataPlane, able: ReducingRuntime, encode_image: Encode
) -> None:
    images = tuple(encode_image(size=size) for size in ((61, 43), (28, 28)))
    first = await plane.segment_images(request(images), call())
    able.is_memory_full = True
    second = await plane.segment_images(request(images), call())
    assert able.num_reduced == 0
    for before, after in zip(first.segmentations, second.segmentations, strict=True):
        np.testing.assert_array_equal(after.labels_HW, before.labels_HW)


async def test_memory_that_is_too_small_even_for_the_patches_is_unavailable(
    plane: DataPlane, able: ReducingRuntime, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plane.segment_images(request((encode_image(),)), call())

    def fail(*_: Any) -> VisionOutput:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(able, "encode_images", fail)
    with pytest.raises(Unavailable, match="too little free memory") as caught:
        await plane.segment_images(request((encode_image(),)), call())
    assert caught.value.code == "out_of_memory"


async def test_a_reloaded_lane_that_reduces_no_longer_returns_the_patches(
    plane: DataPlane, able: ReducingRuntime, encode_image: Encode
) -> None:
    first = await plane.segment_images(request((encode_image(),)), call())
    able.can_reduce = False
    second = await plane.segment_images(request((encode_image(),)), call())
    np.testing.assert_array_equal(
        second.segmentations[0].labels_HW, first.segmentations[0].labels_HW
    )
