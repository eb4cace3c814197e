"""The TensorRT runtime reduces outputs on the device, on stand-ins of its libraries.

Shapes: B batch, N patches, D embedding width, K classes, H W pixels.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.graphs import PatchOutput
from model.pixel_labels import LABELS, pixel_labels
from model.reduction import Reduced, Reduction
from model.runtime.base import Interrupted, Runtime
from model.runtime.graph_runtime import DeviceTensor
from model.runtime.reducer import open_reducer
from model.runtime.tensorrt.runtime import TensorRtRuntime
from model.segmentation import Background, segment
from tests.model.runtime.tensorrt.conftest import images

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.conftest import MakeGpu, StandInGpu

GRID_HW = (4, 4)
SIZES_HW = [(9, 13), (30, 40), (1, 1), (56, 56)]


def reducing_lane(gpu: "StandInGpu") -> TensorRtRuntime:
    lane = gpu.lane()
    lane.reduce_by(partial(open_reducer, "cpu"))  # the stand-in's memory is the host's
    return lane


def classes_of(index: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(index).standard_normal((2 + 5 * index, width), np.float32)


def reduction(index: int, width: int) -> Reduction:
    made = pixel_labels(
        classes_of(index, width),
        source="values",
        grid_hw=GRID_HW,
        size_hw=SIZES_HW[index % 4],
        background=Background(),
    )
    assert made is not None
    return made


def labels_of(reduced: Reduced | None) -> NDArray[Any]:
    assert reduced is not None
    return reduced[LABELS]


@pytest.mark.parametrize("uses_graphs", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 9])  # an engine runs at most four images at once
def test_only_global_embeddings_are_copied_and_labels_are_those_of_the_patches(
    make_gpu: "MakeGpu", reference: Runtime, uses_graphs: bool, batch: int
) -> None:
    gpu = make_gpu(use_cuda_graphs=uses_graphs)
    lane, expected = reducing_lane(gpu), reference.encode_images(images(batch))
    assert lane.can_reduce
    width = expected.cls1_BD.shape[1]
    wanted = [reduction(index, width) for index in range(batch)]
    for _ in range(3):  # of one shape, so the last ones use a recorded graph
        gpu.cuda.returned_bytes = 0
        found = lane.encode_images(images(batch), (), (), wanted)
        assert gpu.cuda.returned_bytes == 2 * expected.cls1_BD.nbytes
        assert found.values_BND.shape[1] == 0
        for index, reduced in enumerate(found.reduced):
            ours = segment(
                expected.values_BND[index],
                classes_of(index, width),
                grid_hw=GRID_HW,
                size_hw=SIZES_HW[index % 4],
            )
            np.testing.assert_array_equal(labels_of(reduced), ours.labels_HW)


def test_a_batch_with_other_images_returns_their_patches_too(
    gpu: "StandInGpu", reference: Runtime
) -> None:
    lane, expected = reducing_lane(gpu), reference.encode_images(images(3))
    wanted = [None, reduction(1, expected.cls1_BD.shape[1]), None]
    gpu.cuda.returned_bytes = 0
    returned: tuple[PatchOutput, ...] = ("patches",)
    found = lane.encode_images(images(3), (), returned, wanted)
    assert gpu.cuda.returned_bytes == 2 * expected.cls1_BD.nbytes + expected.patches_BND.nbytes
    np.testing.assert_allclose(found.patches_BND, expected.patches_BND, atol=1e-6)
    assert [labels is not None for labels in found.reduced] == [False, True, False]


def test_outputs_of_fewer_bits_are_not_reduced(gpu: "StandInGpu") -> None:
    gpu.trt.types = {"value_embeddings": gpu.trt.DataType.HALF}
    assert not reducing_lane(gpu).can_reduce


class Failing:
    """Fails, or interrupts its lane."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def run(self, reduction: Reduction, rows_ND: DeviceTensor) -> Reduced:
        del reduction, rows_ND
        self.act()
        return {}


def test_a_failed_reduction_leaves_the_lane_usable(gpu: "StandInGpu", reference: Runtime) -> None:
    lane, expected = gpu.lane(), reference.encode_images(images(2))

    def fail() -> None:
        raise RuntimeError("CUDA out of memory")

    lane.reduce_by(lambda: Failing(fail))
    wanted = [reduction(0, expected.cls1_BD.shape[1])] * 2
    with pytest.raises(RuntimeError, match="out of memory"):
        lane.encode_images(images(2), (), (), wanted)
    np.testing.assert_allclose(lane.encode_images(images(2)).cls1_BD, expected.cls1_BD, atol=1e-6)


def test_an_interrupt_during_a_reduction_skips_the_remaining_runs(gpu: "StandInGpu") -> None:
    lane = gpu.lane()
    lane.reduce_by(lambda: Failing(lane.interrupt))
    wanted = [reduction(0, 8)] * 9
    with pytest.raises(Interrupted):
        lane.encode_images(images(9), (), (), wanted)
