"""Lanes, threads and batches fit the processors and the memory."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.manifest import FileEntry, Manifest
from model.package import ModelPackage
from service.lanes.sizing import LanePlan, find_batch_size, plan_lanes

MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("place", "given", "plan"),
    [
        ("onnx cpu", {"cpus": 1}, (1, 1)),
        ("onnx cpu", {"cpus": 2}, (2, 1)),
        ("onnx cpu", {"cpus": 32}, (8, 4)),
        ("onnx cpu", {"lanes": 2}, (2, 4)),
        ("onnx cpu", {"cpus": 2, "lanes": 4}, (4, 1)),
        # With little memory fewer lanes get more threads; graphs take three times their size.
        ("onnx cpu", {"free_bytes": 16 * GB}, (2, 4)),
        ("onnx cpu", {"free_bytes": GB}, (1, 8)),  # at least one lane
        ("onnx cpu", {"free_bytes": GB, "lanes": 8}, (8, 1)),  # as set
        ("openvino cpu", {"free_bytes": 16 * GB}, (8, 1)),  # lanes share the weights
        ("torch cpu", {"free_bytes": 16 * GB}, (1, 8)),  # weights of another file
        ("onnx cpu int8", {"free_bytes": 16 * GB}, (1, 8)),  # and of another graph
        ("onnx gpu", {"free_bytes": GB}, (2, 4)),
        ("onnx gpu", {"lanes": 5}, (5, 1)),
    ],
)
def test_unset_numbers_use_all_processors_that_memory_allows(
    manifest: Manifest, place: str, given: dict[str, int], plan: tuple[int, int]
) -> None:
    sizes = {"onnx/vision_model.onnx": 800 * MB, "onnx/vision_model.onnx.data": 500 * MB}
    sizes |= {"onnx/vision_model_int8.onnx": 7 * GB, "model.safetensors": 3 * GB}
    files = {name: FileEntry(sha256="0" * 64, size_bytes=size) for name, size in sizes.items()}
    package = ModelPackage(Path(), manifest.model_copy(update={"files": files}))
    runtime, device, precision = [*place.split(), "fp32"][:3]
    choice: Any = SimpleNamespace(runtime=runtime, precision=precision, device=device)
    unset: Any = {"lanes": None, "free_bytes": None, "cpus": 8}
    assert plan_lanes(package, choice, **{**unset, **given}) == LanePlan(*plan)


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
