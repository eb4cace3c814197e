"""The gate lets equal graphs through and stops each planted fault, in every precision."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Tipsv2Model

from model.graphs import TEXT_FILE, VISION_FILE, DenseTask, Precision
from model.manifest import ParityEntry
from model.package import ModelPackage
from model.parity.distance import ParityError
from model.parity.gate import measure, require
from model.parity.reference import Reference, build_reference
from model.runtime.base import Runtime, VisionOutput
from model.runtime.loaded_graphs import LoadedGraph
from tests.model.parity.conftest import Altered

FloatArray = NDArray[np.float32]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Change = Callable[[VisionOutput], VisionOutput]


def vision_run(precision: Precision = "fp32") -> LoadedGraph:
    return LoadedGraph("vision", VISION_FILE, precision)


def text_run(precision: Precision = "fp32") -> LoadedGraph:
    return LoadedGraph("text", TEXT_FILE, precision)


def patches_changed(change: Callable[[FloatArray, tuple[int, int]], FloatArray]) -> Change:
    """A fault in both kinds of patches."""
    return lambda output: replace(
        output,
        patches_BND=change(output.patches_BND, output.grid_hw),
        values_BND=change(output.values_BND, output.grid_hw),
    )


def transposed(patches_BND: FloatArray, grid_hw: tuple[int, int]) -> FloatArray:
    batch, _, width = patches_BND.shape
    grid_BHWD = patches_BND.reshape(batch, *grid_hw, width)
    return np.ascontiguousarray(grid_BHWD.swapaxes(1, 2)).reshape(patches_BND.shape)


def rolled(patches_BND: FloatArray, _: tuple[int, int]) -> FloatArray:
    return np.roll(patches_BND, 1, axis=1)


def one_patch(value: float) -> Callable[[FloatArray, tuple[int, int]], FloatArray]:
    """Replaces the last patch of the last image."""

    def change(patches_BND: FloatArray, _: tuple[int, int]) -> FloatArray:
        patches_BND = patches_BND.copy()
        patches_BND[-1, -1] = value
        return patches_BND

    return change


def items_swapped(output: VisionOutput) -> VisionOutput:
    return replace(
        output,
        cls1_BD=output.cls1_BD[::-1],
        cls2_BD=output.cls2_BD[::-1],
        patches_BND=output.patches_BND[::-1],
        values_BND=output.values_BND[::-1],
    )


# What no precision excuses.
FAULTS: dict[str, Change] = {
    "cls1 and cls2 swapped": lambda o: replace(o, cls1_BD=o.cls2_BD, cls2_BD=o.cls1_BD),
    "values instead of patches": lambda o: replace(o, patches_BND=o.values_BND),
    "grid transposed": patches_changed(transposed),
    "patches shifted by one": patches_changed(rolled),
    "one patch lost": patches_changed(one_patch(1.0)),
    "NaN in one patch": patches_changed(one_patch(float("nan"))),
    "infinity in one patch": patches_changed(one_patch(float("inf"))),
    "a NaN in cls2": lambda o: replace(o, cls2_BD=o.cls2_BD * np.float32("nan")),
    "a batch's items swapped": items_swapped,
    "opposite sign": lambda o: replace(o, cls1_BD=-o.cls1_BD),
    "twice the scale": lambda o: replace(o, cls1_BD=2 * o.cls1_BD),
}


def test_equal_graphs_pass_and_their_sizes_are_told(reference: Reference, runtime: Runtime) -> None:
    vision, text = measure(reference, runtime, [vision_run(), text_run()])
    require([vision, text])
    assert (vision.file, text.file) == (VISION_FILE, TEXT_FILE)
    for entry in (vision, text):
        assert entry.passed
        assert (entry.runtime, entry.precision) == ("onnx", "fp32")
        assert entry.min_cosine_cls is not None
        assert entry.mean_cosine_cls is not None
        assert 0.99999 < entry.min_cosine_cls <= entry.mean_cosine_cls + 1e-6
        assert entry.mask_agreement is not None
        assert entry.mask_agreement > 0.9999
        assert entry.worst_size in entry.sizes
    assert {1, 2, 8} <= {batch for batch, *_ in vision.sizes}
    assert max(vision.sizes, key=lambda size: size[1])[1:] == (112, 112)
    oblong = {size for size in vision.sizes if size[1] != size[2]}
    assert any((batch, width, height) in oblong for batch, height, width in oblong)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_right_passes_in_every_precision(
    reference: Reference, altered: Altered, precision: Precision
) -> None:
    entries = measure(reference, altered, [vision_run(precision), text_run(precision)])
    assert [entry.failures for entry in entries] == [(), ()]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_stopped_in_every_precision(
    reference: Reference, altered: Altered, fault: str, precision: Precision
) -> None:
    altered.change_vision = FAULTS[fault]
    (entry,) = measure(reference, altered, [vision_run(precision)])
    assert not entry.passed
    with pytest.raises(ParityError, match=r"vision_model\.onnx on altered.*Nothing was written"):
        require([entry])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_padding_that_is_taken_for_words_is_stopped(
    reference: Reference, altered: Altered, precision: Precision
) -> None:
    altered.change_mask = np.ones_like
    (entry,) = measure(reference, altered, [text_run(precision)])
    assert not entry.passed


@pytest.mark.parametrize("offset", [1e-3, float("nan")])
def test_a_small_offset_in_one_number_of_one_text_is_stopped_in_float32(
    reference: Reference, altered: Altered, offset: float
) -> None:
    def change(embeddings_BD: FloatArray) -> FloatArray:
        embeddings_BD[-1, 0] += np.float32(offset)
        return embeddings_BD

    altered.change_text = change
    (entry,) = measure(reference, altered, [text_run()])
    with pytest.raises(ParityError, match=r"text_model\.onnx on altered in fp32.*at the size \("):
        require([entry])


def test_a_small_offset_in_one_number_of_one_patch_is_stopped_in_float32(
    reference: Reference, altered: Altered
) -> None:
    def change(output: VisionOutput) -> VisionOutput:
        output.patches_BND[-1, -1, -1] += np.float32(1e-3)
        return output

    altered.change_vision = change
    (entry,) = measure(reference, altered, [vision_run()])
    assert entry.failures
    assert entry.failures[0].startswith("max_relative_diff is 0.00")


def test_another_shape_is_stopped(reference: Reference, altered: Altered) -> None:
    altered.change_vision = lambda o: replace(o, patches_BND=o.patches_BND[:, 1:])
    with pytest.raises(ParityError, match=r"shape \[1, 15, 32\] instead of \[1, 16, 32\]"):
        measure(reference, altered, [vision_run()])


def test_a_graph_that_refuses_an_input_is_stopped(reference: Reference, altered: Altered) -> None:
    def refuse(_: FloatArray) -> FloatArray:
        raise RuntimeError("baked shape")

    altered.change_text = refuse
    with pytest.raises(ParityError, match=r"text_model\.onnx.*size \(1, \d\): baked shape"):
        measure(reference, altered, [text_run()])


def test_another_model_is_stopped(tiny_package: ModelPackage, runtime: Runtime) -> None:
    other = Tipsv2Model.from_pretrained(tiny_package.path)
    with torch.no_grad():
        other.vision_model.embeddings.register_tokens[..., 0] += 0.01
    (entry,) = measure(build_reference(other, tiny_package), runtime, [vision_run()])
    assert not entry.passed


def test_measuring_twice_gives_the_same_entries_and_they_survive_the_manifest(
    reference: Reference, runtime: Runtime
) -> None:
    first, second = (measure(reference, runtime, [vision_run(), text_run()]) for _ in range(2))
    assert first == second
    assert [ParityEntry.model_validate_json(entry.model_dump_json()) for entry in first] == first


DENSE: dict[DenseTask, FloatArray] = {
    "depth": np.linspace(0.5, 9, 64, dtype=np.float32).reshape(1, 8, 8),
    "normals": np.moveaxis(np.array([[[[0.0, 0.6, 0.8]] * 8] * 8], np.float32), -1, 1),
    "segmentation": np.random.default_rng(0).random((1, 5, 8, 8), dtype=np.float32),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", DENSE)
def test_a_dense_head_is_held_to_its_own_number(
    tiny_model: Tipsv2Model,
    tiny_package: ModelPackage,
    altered: Altered,
    task: DenseTask,
    precision: Precision,
) -> None:
    right = {task: lambda pixels_B3HW: np.repeat(DENSE[task], len(pixels_B3HW), axis=0)}
    reference = build_reference(tiny_model, tiny_package, dense=right, budget_gflop=0)
    run = LoadedGraph(task, "onnx/dense.onnx", precision)
    altered.dense = dict(right)
    (entry,) = measure(reference, altered, [run])
    assert entry.passed
    altered.dense = {task: lambda pixels_B3HW: right[task](pixels_B3HW)[..., ::-1] * 1.2}
    (entry,) = measure(reference, altered, [run])
    assert entry.passed == (task == "normals")  # these are the same all over
    altered.dense = {task: lambda pixels_B3HW: right[task](pixels_B3HW)[..., ::-1] - 1}
    (entry,) = measure(reference, altered, [run])
    assert not entry.passed
