"""Lanes, threads and batches fit the processors and the memory."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.graphs import Precision
from model.package import FileEntry, Manifest, ModelPackage
from model.runtime.choice import RuntimeChoice
from model.runtime.machine import RuntimeName
from service.lanes.sizing import BatchMemory, LanePlan, plan_lanes, weight_bytes
from service.lanes.work import Bucket

MB = 2**20
GB = 10**9


@pytest.mark.parametrize(
    ("lanes", "threads", "cpus", "plan"),
    [
        (None, None, 1, LanePlan(1, 1)),
        (None, None, 2, LanePlan(2, 1)),
        (None, None, 32, LanePlan(8, 4)),
        (None, 2, 4, LanePlan(2, 2)),
        (None, 4, 2, LanePlan(1, 4)),
        (2, None, 8, LanePlan(2, 4)),
        (4, None, 2, LanePlan(4, 1)),
        (3, 5, 1, LanePlan(3, 5)),
    ],
)
def test_unset_numbers_use_all_processors(
    lanes: int | None, threads: int | None, cpus: int, plan: LanePlan
) -> None:
    found = plan_lanes(lanes=lanes, threads=threads, cpus=cpus, free_bytes=None, lane_bytes=GB)
    assert found == plan


def test_with_little_memory_fewer_lanes_get_more_threads() -> None:
    found = plan_lanes(lanes=None, threads=None, cpus=8, free_bytes=16 * GB, lane_bytes=4 * GB)
    assert found == LanePlan(2, 4)
    found = plan_lanes(lanes=None, threads=None, cpus=8, free_bytes=GB, lane_bytes=4 * GB)
    assert found == LanePlan(1, 8), "at least one lane"


def test_memory_shared_by_lanes_counts_once() -> None:
    found = plan_lanes(
        lanes=None, threads=None, cpus=8, free_bytes=16 * GB, lane_bytes=GB, shared_bytes=4 * GB
    )
    assert found == LanePlan(4, 2)
    found = plan_lanes(
        lanes=None, threads=None, cpus=8, free_bytes=16 * GB, lane_bytes=0, shared_bytes=4 * GB
    )
    assert found == LanePlan(8, 1), "memory of a lane not yet known"


def test_only_loaded_graphs_count(manifest: Manifest) -> None:
    sizes = {"onnx/vision_model.onnx": 100, "onnx/vision_model_int8.onnx": 7}
    sizes |= {"onnx/text_model.onnx": 20, "model.safetensors": 1000}
    files = {name: FileEntry(sha256="0" * 64, size_bytes=size) for name, size in sizes.items()}
    package = ModelPackage(Path(), manifest.model_copy(update={"files": files}))

    def weights(runtime: RuntimeName, precision: Precision) -> tuple[int, int]:
        choice = RuntimeChoice(runtime=runtime, precision=precision, device="cpu", reason="")
        return weight_bytes(package, choice)

    assert weights("onnx", "fp32") == (3 * 120, 0)
    assert weights("onnx", "int8") == (3 * 27, 0)
    assert weights("openvino", "bf16") == (0, 3 * 120), "shared by all lanes"
    assert weights("torch", "fp32") == (0, 3 * 1000)


def test_a_set_number_of_lanes_is_kept_without_enough_memory() -> None:
    found = plan_lanes(lanes=8, threads=None, cpus=8, free_bytes=GB, lane_bytes=4 * GB)
    assert found == LanePlan(8, 1)


SMALL, LARGE = Bucket("image", (28, 28)), Bucket("image", (56, 112))


def num_patches(bucket: Bucket) -> int:
    return math.prod(bucket.shape) // 14**2


def test_unmeasured_memory_gives_no_bound() -> None:
    assert BatchMemory({}).patches_within(MB, num_patches) is None
    assert BatchMemory({SMALL: 0}).patches_within(MB, num_patches) is None


def test_each_kind_has_its_own_bound() -> None:
    memory = BatchMemory({LARGE: 32 * MB, Bucket("depth", (28, 28)): 40 * MB})
    assert memory.largest_bytes == 40 * MB
    assert memory.patches_within(64 * MB, num_patches) == 64
    assert memory.patches_within(64 * MB, num_patches, "depth") == 6
    assert memory.patches_within(64 * MB, num_patches, "normals") is None


@given(small=st.integers(1, 10**9), large=st.integers(1, 10**9), budget=st.integers(0, 10**11))
def test_the_bound_follows_the_largest_shape(small: int, large: int, budget: int) -> None:
    memory = BatchMemory({SMALL: small, LARGE: large})
    patches = memory.patches_within(budget, num_patches)
    assert patches is not None
    assert patches * large <= max(budget, 1) * num_patches(LARGE) or patches <= budget
    assert patches <= budget
