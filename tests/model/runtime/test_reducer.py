"""Reductions run on the outputs of a graph, in the runtimes of a GPU with a CPU in its place.

Shapes: B batch, N patches, D embedding width, K classes, H W pixels.
"""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.graphs import PatchOutput
from model.package import ModelPackage
from model.pixel_labels import LABELS, PIXEL_LABELS_FILE, pixel_labels
from model.reduction import Reduced, Reduction
from model.runtime import load, onnx_runtime, reducer
from model.runtime.base import Runtime, VisionOutput, is_out_of_memory, reducing
from model.runtime.graph_runtime import BatchReductions, DeviceTensor
from model.runtime.load import load_runtime
from model.runtime.machine import this_hardware
from model.runtime.onnx_runtime import OnnxGraph, open_session
from model.runtime.reducer import open_reducer
from model.segmentation import Background, segment

GRID_HW = (4, 4)


def images(batch: int, height: int = 56, width: int = 56) -> NDArray[np.float32]:
    return np.random.default_rng(batch).random((batch, 3, height, width), dtype=np.float32)


def classes(count: int, package: ModelPackage) -> NDArray[np.float32]:
    width = package.manifest.embed_dim
    return np.random.default_rng(count).standard_normal((count, width), np.float32)


def reduction(
    classes_KD: NDArray[np.float32],
    size_hw: tuple[int, int],
    source: PatchOutput = "values",
    grid_hw: tuple[int, int] = GRID_HW,
) -> Reduction:
    made = pixel_labels(
        classes_KD, source=source, grid_hw=grid_hw, size_hw=size_hw, background=Background()
    )
    assert made is not None
    return made


def labels(
    patches_ND: NDArray[np.float32],
    classes_KD: NDArray[np.float32],
    size_hw: tuple[int, int],
    grid_hw: tuple[int, int] = GRID_HW,
) -> NDArray[Any]:
    return segment(patches_ND, classes_KD, grid_hw=grid_hw, size_hw=size_hw).labels_HW


def labels_of(reduced: Reduced | None) -> NDArray[Any]:
    assert reduced is not None
    return reduced[LABELS]


@pytest.fixture
def runtime(tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """ONNX Runtime on a CPU that is treated as a GPU."""
    monkeypatch.setattr(load, "REDUCES_ON", {"cpu"})
    loaded = load_runtime(tiny_package, runtime="onnx", device="cpu")
    yield loaded
    loaded.close()


def encode(
    runtime: Runtime,
    pixels_B3HW: NDArray[np.float32],
    outputs: tuple[PatchOutput, ...],
    reductions: list[Reduction | None],
) -> VisionOutput:
    able = reducing(runtime)
    assert able is not None
    return able.encode_images(pixels_B3HW, (), outputs, reductions)


def test_each_image_of_a_batch_has_its_own_reduction(
    runtime: Runtime, tiny_package: ModelPackage
) -> None:
    expected = runtime.encode_images(images(4))
    few_KD, many_KD = classes(2, tiny_package), classes(30, tiny_package)
    wanted = [
        reduction(few_KD, (9, 13)),
        None,
        reduction(many_KD, (40, 30), "patches"),
        reduction(many_KD, (9, 13)),
    ]
    found = encode(runtime, images(4), ("patches",), wanted)
    np.testing.assert_array_equal(found.patches_BND, expected.patches_BND)
    assert found.values_BND.shape[1] == 0
    assert [labels_HW is None for labels_HW in found.reduced] == [False, True, False, False]
    for index, classes_KD, size_hw, rows_BND in (
        (0, few_KD, (9, 13), expected.values_BND),
        (2, many_KD, (40, 30), expected.patches_BND),
        (3, many_KD, (9, 13), expected.values_BND),
    ):
        np.testing.assert_array_equal(
            labels_of(found.reduced[index]), labels(rows_BND[index], classes_KD, size_hw)
        )


def test_a_batch_that_a_cpu_computes_in_parts_is_reduced_part_by_part(
    runtime: Runtime, tiny_package: ModelPackage
) -> None:
    pixels_B3HW, classes_KD = images(3, 448, 448), classes(5, tiny_package)
    one = reduction(classes_KD, (20, 30), grid_hw=(32, 32))
    found = encode(runtime, pixels_B3HW, (), [one, None, one])
    expected = runtime.encode_images(pixels_B3HW)
    assert found.patches_BND.shape[1] == found.values_BND.shape[1] == 0
    assert found.reduced[1] is None
    for index in (0, 2):
        wanted = labels(expected.values_BND[index], classes_KD, (20, 30), (32, 32))
        np.testing.assert_array_equal(labels_of(found.reduced[index]), wanted)


def test_bound_outputs_are_read_before_they_are_copied(
    tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtime, "GPU_MEMORY", "cpu")
    session = open_session(tiny_package.file("onnx/vision_model.onnx"), "cpu", "fp32", 1)
    graph = OnnxGraph(session, "cuda", lambda _: None, max_large=1)
    assert graph.are_float32(("patch_embeddings", "value_embeddings"))
    assert not graph.are_float32(("patch_embeddings", "absent"))
    opened = open_reducer("cpu")
    assert opened is not None
    classes_KD = classes(3, tiny_package)
    expected = graph.run({"pixel_values": images(2)}, ("cls1", "value_embeddings"))
    batch = BatchReductions(opened, [None, reduction(classes_KD, (9, 9))])
    found = graph.run_reducing({"pixel_values": images(2)}, ("cls1",), batch)
    assert found.keys() == {"cls1"}
    np.testing.assert_array_equal(found["cls1"], expected["cls1"])
    assert batch.results[0] is None
    wanted = labels(expected["value_embeddings"][1], classes_KD, (9, 9))
    np.testing.assert_array_equal(labels_of(batch.results[1]), wanted)


def test_a_cpu_reduces_nothing_by_itself(tiny_package: ModelPackage) -> None:
    for name in ("onnx", "openvino", "torch"):
        loaded = load_runtime(tiny_package, runtime=name, device="cpu", precision="fp32")
        assert reducing(loaded) is None
        loaded.close()


def test_a_runtime_whose_graph_cannot_be_read_reduces_nothing(
    tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "REDUCES_ON", {"cpu"})
    loaded = load_runtime(tiny_package, runtime="openvino", device="cpu", precision="fp32")
    assert reducing(loaded) is None
    loaded.close()
    monkeypatch.setattr(OnnxGraph, "are_float32", lambda *_: False)
    loaded = load_runtime(tiny_package, runtime="onnx", device="cpu")
    assert reducing(loaded) is None
    loaded.close()


def test_lanes_share_a_reducer(runtime: Runtime) -> None:
    del runtime
    assert open_reducer("cpu") is open_reducer("cpu")


def test_without_a_gpu_or_with_wrong_labels_there_is_none_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not this_hardware().gpus:
        assert open_reducer("gpu") is None
        assert "masks are made on the CPU and not on the GPU: the provider" in caplog.text
    monkeypatch.setattr(reducer, "objection", lambda *_, **__: "its labels of a trial differ")
    with caplog.at_level(logging.WARNING):
        assert open_reducer("cpu") is None
    assert "its labels of a trial differ" in caplog.text


class Placed:
    """A session whose heavy nodes are on the CPU beside a GPU."""

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [self]

    ep_name = "CPUExecutionProvider"

    def get_nodes(self) -> list[Any]:
        return [type("Node", (), {"op_type": kind}) for kind in ("Reshape", "ArgMax")]


def test_a_provider_that_leaves_the_best_class_to_the_cpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Any] = []

    def open_placed(*arguments: Any, **options: Any) -> Placed:
        asked.append((arguments, options))
        return Placed()

    monkeypatch.setattr(reducer, "open_session", open_placed)
    assert open_reducer("gpu") is None
    assert "leaves ArgMax of this graph to the CPU" in caplog.text
    ((path, provider, precision, _), options) = asked[0]
    assert (path, provider, precision) == (PIXEL_LABELS_FILE, "cuda", "fp32")
    assert options["cuda"]["gpu_mem_limit"] == str(1 << 30)


def test_the_full_arena_of_a_reducer_is_full_memory() -> None:
    assert is_out_of_memory(
        RuntimeError("Available memory of 5 is smaller than requested bytes of 4096")
    )


def test_a_tensor_is_indexed_by_its_address() -> None:
    assert DeviceTensor(1000, (3, 5, 2))[2] == DeviceTensor(1000 + 2 * 5 * 2 * 4, (5, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("runtime_name", ["onnx", "tensorrt"])
def test_a_gpu_labels_pixels_as_the_cpu_does(tiny_package: ModelPackage, runtime_name: str) -> None:
    if not this_hardware().gpus:
        pytest.skip("there is no NVIDIA GPU")
    loaded = load_runtime(tiny_package, runtime=runtime_name, device="gpu", precision="fp32")
    for batch in (1, 3):
        expected = loaded.encode_images(images(batch))
        for count, size_hw in ((1, (9, 9)), (22, (480, 640)), (255, (101, 53))):
            classes_KD = classes(count, tiny_package)
            wanted: list[Reduction | None] = [reduction(classes_KD, size_hw)] * batch
            found = encode(loaded, images(batch), (), wanted)
            for reduced, values_ND in zip(found.reduced, expected.values_BND, strict=True):
                is_wrong_HW = labels_of(reduced) != labels(values_ND, classes_KD, size_hw)
                assert np.mean(is_wrong_HW) < 0.001
    loaded.close()
