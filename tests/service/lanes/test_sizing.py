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


@pytest.mark.parametrize(
    ("lanes", "free_gb", "lane_gb", "shared_gb", "plan"),
    [
        (None, 16, 4, 0, LanePlan(2, 4)),
        (None, 1, 4, 0, LanePlan(1, 8)),  # at least one lane
        (None, 16, 1, 4, LanePlan(4, 2)),  # shared memory counts once
        (None, 16, 0, 4, LanePlan(8, 1)),  # the memory of a lane is not yet known
        (8, 1, 4, 0, LanePlan(8, 1)),  # a set number of lanes is kept
    ],
)
def test_with_little_memory_fewer_lanes_get_more_threads(
    lanes: int | None, free_gb: int, lane_gb: int, shared_gb: int, plan: LanePlan
) -> None:
    found = plan_lanes(
        lanes=lanes,
        threads=None,
        cpus=8,
        free_bytes=free_gb * GB,
        lane_bytes=lane_gb * GB,
        shared_bytes=shared_gb * GB,
    )
    assert found == plan


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


SMALL, LARGE = Bucket("image", (28, 28)), Bucket("image", (56, 112))


def num_patches(bucket: Bucket) -> int:
    return math.prod(bucket.shape) // 14**2


def test_each_kind_has_its_own_bound_and_unmeasured_memory_has_none() -> None:
    memory = BatchMemory({LARGE: 32 * MB, Bucket("depth", (28, 28)): 40 * MB})
    assert memory.largest_bytes == 40 * MB
    assert memory.patches_within(64 * MB, num_patches) == 64
    assert memory.patches_within(64 * MB, num_patches, "depth") == 6
    assert memory.patches_within(64 * MB, num_patches, "normals") is None
    assert BatchMemory({}).patches_within(MB, num_patches) is None
    assert BatchMemory({SMALL: 0}).patches_within(MB, num_patches) is None


@given(small=st.integers(1, 10**9), large=st.integers(1, 10**9), budget=st.integers(0, 10**11))
def test_the_bound_follows_the_largest_shape(small: int, large: int, budget: int) -> None:
    memory = BatchMemory({SMALL: small, LARGE: large})
    patches = memory.patches_within(budget, num_patches)
    assert patches is not None
    assert patches * large <= max(budget, 1) * num_patches(LARGE) or patches <= budget
    assert patches <= budget
