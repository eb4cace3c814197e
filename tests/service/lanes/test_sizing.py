"""Lanes, threads and batches fit the processors and the memory."""

from pathlib import Path
from typing import Any

import pytest

from model.graphs import Precision
from model.manifest import FileEntry, Manifest
from model.package import ModelPackage
from model.runtime.choice import RuntimeChoice
from model.runtime.machine import RuntimeName
from service.lanes.sizing import (
    LanePlan,
    find_batch_size,
    plan_lanes,
    weight_bytes,
)
from service.lanes.work import Bucket

GB = 10**9


@pytest.mark.parametrize(
    ("given", "plan"),
    [
        ({"cpus": 1}, (1, 1)),
        ({"cpus": 2}, (2, 1)),
        ({"cpus": 32}, (8, 4)),
        ({"cpus": 8, "lanes": 2}, (2, 4)),
        ({"cpus": 2, "lanes": 4}, (4, 1)),
        ({"cpus": 1, "lanes": 3}, (3, 1)),
        # With little memory fewer lanes get more threads.
        ({"free_bytes": 16 * GB, "lane_bytes": 4 * GB}, (2, 4)),
        ({"free_bytes": 1 * GB, "lane_bytes": 4 * GB}, (1, 8)),  # at least one lane
        ({"free_bytes": 16 * GB, "lane_bytes": GB, "shared_bytes": 4 * GB}, (4, 2)),
        ({"free_bytes": 16 * GB, "lane_bytes": 0, "shared_bytes": 4 * GB}, (8, 1)),
        ({"free_bytes": 1 * GB, "lane_bytes": 4 * GB, "lanes": 8}, (8, 1)),  # as set
    ],
)
def test_unset_numbers_use_all_processors_that_memory_allows(
    given: dict[str, int], plan: tuple[int, int]
) -> None:
    unset: Any = {"lanes": None, "free_bytes": None, "lane_bytes": GB, "cpus": 8}
    assert plan_lanes(**{**unset, **given}) == LanePlan(*plan)


SMALL, LARGE = Bucket("image", (28, 28)), Bucket("image", (56, 112))


@pytest.mark.parametrize(
    ("seconds", "most", "size"),
    [
        ({1: 1.0, 2: 1.96}, 64, 1),
        ({1: 1.0, 2: 1.8, 4: 3.0, 8: 5.9}, 64, 4),
        ({1: 1.0, 2: 1.0, 4: 1.0}, 7, 4),
        ({1: 1.0, 2: 1.0}, 64, 2),  # the time is over
        ({}, 64, 1),
        ({1: 0.004, 2: 0.008, 4: 0.016, 8: 0.032}, 64, 4),  # short batches may be as dear
        ({1: 0.012, 2: 0.024}, 64, 1),
        ({1: 0.0001, 2: 0.0005}, 64, 1),  # to stack images takes longer than to run them
    ],
)
def test_batches_double_while_images_get_cheaper(
    seconds: dict[int, float], most: int, size: int
) -> None:
    assert find_batch_size(seconds.get, most) == size


@pytest.mark.parametrize(
    ("runtime", "precision", "expected"),
    [
        ("onnx", "fp32", (3 * 123, 0)),
        ("onnx", "int8", (3 * 27, 0)),
        ("openvino", "bf16", (0, 3 * 123)),  # shared by all lanes
        ("torch", "fp32", (0, 3 * 1000)),
    ],
)
def test_only_loaded_graphs_and_their_weights_count(
    manifest: Manifest, runtime: RuntimeName, precision: Precision, expected: tuple[int, int]
) -> None:
    sizes = {"onnx/vision_model.onnx": 100, "onnx/vision_model_int8.onnx": 7}
    sizes |= {"onnx/vision_model.onnx.data": 3, "onnx/text_model.onnx": 20}
    sizes["model.safetensors"] = 1000
    files = {name: FileEntry(sha256="0" * 64, size_bytes=size) for name, size in sizes.items()}
    package = ModelPackage(Path(), manifest.model_copy(update={"files": files}))
    choice = RuntimeChoice(runtime=runtime, precision=precision, device="cpu", reason="")
    assert weight_bytes(package, choice) == expected
