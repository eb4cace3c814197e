"""Reference outputs in a package equal torch's, and a runtime that differs from them fails."""

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import Tipsv2DptForDensePrediction

from model.encoder import Tipsv2Encoder
from model.graphs import DENSE_TASKS
from model.manifest import RECORDED_FILE
from model.package import ModelPackage, PackageError, write_manifest
from model.parity.measure import Reference
from model.parity.recorded import check_runtime, read_recorded, write_recorded
from model.parity.reference import (
    dense_reference,
    recorded_reference,
    reference_text,
    reference_vision,
)
from model.runtime.base import VisionOutput
from model.runtime.choice import RuntimeChoice
from model.runtime.load import load_runtime
from tests.model.parity.conftest import Altered

ON_CPU = RuntimeChoice(runtime="onnx", precision="fp32", device="cpu", reason="")


@pytest.fixture(scope="module")
def recorded(tiny_package: ModelPackage) -> Reference:
    found = read_recorded(tiny_package)
    assert found is not None
    return found


def test_a_package_keeps_what_torch_computes(
    tiny_encoder: Tipsv2Encoder, tiny_package: ModelPackage, recorded: Reference
) -> None:
    towers, manifest = tiny_encoder.reference, tiny_package.manifest
    assert RECORDED_FILE in manifest.files
    assert sum(len(case.masks) for case in recorded.vision) == 8
    for case in recorded.vision:
        assert case.size[1:] == (manifest.native_size, manifest.native_size)
        full = reference_vision(towers, [case.pixels_B3HW], manifest.patch_size)
        samples = case.samples
        assert samples is not None
        for name in ("cls1_BD", "cls2_BD"):
            found, wanted = getattr(case.output, name), getattr(full, name)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
        for name in ("patches_BND", "values_BND"):
            found, every = getattr(case.output, name), getattr(full, name)
            for item, rows in enumerate(samples.rows_BS):
                np.testing.assert_allclose(found[item], every[item, rows], rtol=0, atol=1e-5)
    (text,) = recorded.text
    wanted_BD = reference_text(towers, text.given)
    np.testing.assert_allclose(text.output_BD, wanted_BD, rtol=0, atol=1e-5)
    assert manifest.files[RECORDED_FILE].size_bytes < 500_000


def test_an_equal_runtime_passes_and_a_wrong_one_fails_with_its_number(
    tiny_package: ModelPackage, recorded: Reference, altered: Any
) -> None:
    vision, text = check_runtime(recorded, tiny_package, ON_CPU, altered)
    assert (vision.failures, text.failures) == ((), ())
    assert (vision.precision, text.precision) == ("fp32", "fp32")

    def swapped(output: VisionOutput) -> VisionOutput:
        return replace(output, values_BND=output.patches_BND, patches_BND=output.values_BND)

    altered.change_vision = swapped
    altered.change_text = lambda output_BD: 1.1 * output_BD
    vision, text = check_runtime(recorded, tiny_package, ON_CPU, altered)
    assert "max_relative_diff" in vision.failures[0]
    assert "mask_agreement" in vision.failures[1]
    assert text.failures == ("max_relative_diff is 0.1, max_relative_diff 0.0001",)


def test_maps_of_heads_are_recorded_and_compared(
    tiny_encoder: Tipsv2Encoder,
    tiny_dense: Tipsv2DptForDensePrediction,
    dense_package: ModelPackage,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(dense_package.path, folder)
    dense, steps = dense_reference(tiny_dense), list[str]()
    recorded = recorded_reference(tiny_encoder, dense_package, dense=dense, progress=steps.append)
    write_recorded(*recorded, folder)
    kinds = [step.partition(": ")[0] for step in steps]
    assert set(kinds) == {"computing prompts in torch", "computing images in torch"}
    package = write_manifest(folder, dense_package.manifest)
    reference = read_recorded(package)
    assert reference is not None
    assert reference.tasks == set(DENSE_TASKS)
    with closing(load_runtime(package, runtime="onnx")) as runtime:
        entries = check_runtime(reference, package, ON_CPU, runtime)
        assert [entry.failures for entry in entries] == [()] * 5
        wrong: Any = Altered(runtime)
        wrong.change_maps = np.negative
        entries = check_runtime(reference, package, ON_CPU, wrong)
    assert [entry.passed for entry in entries] == [True, True, False, False, False]


Arrays = dict[str, Any]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {name: a[name] for name in a.keys() - {"cls2"}}, "cls2"),
        (lambda a: a | {"patches": a["patches"] * np.nan}, "patches is not finite"),
        (lambda a: a | {"rows": a["rows"] + 10**6}, "rows has an index outside"),
        (lambda a: a | {"points": a["points"][0].copy()}, "points has no indices"),
        (lambda a: a | {"size": np.array([10**6, 10**6])}, r"the images have \d+ patches"),
        (lambda a: a | {"size": np.array([0, 14])}, "the images have 0 patches"),
        (lambda a: a | {"images": a["images"][0].copy()}, "images is uint8"),
    ],
)
def test_damaged_outputs_are_refused_with_a_sentence(
    tiny_package: ModelPackage, tmp_path: Path, change: Callable[[Arrays], Arrays], words: str
) -> None:
    arrays = change(load_file(tiny_package.file(RECORDED_FILE)))
    metadata = {"reference": "torch", "features": "values"}
    save_file(arrays, tmp_path / RECORDED_FILE, metadata=metadata)
    with pytest.raises(PackageError, match=f"reference outputs .* are damaged .*({words})"):
        read_recorded(replace(tiny_package, path=tmp_path))


@pytest.mark.parametrize(
    ("content", "words"), [(b"\xff" * 100, ""), (b"\0" * 40 * 2**20, "more than 33554432 bytes")]
)
def test_a_file_that_is_no_safetensors_is_refused(
    tiny_package: ModelPackage, tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / RECORDED_FILE).write_bytes(content)
    with pytest.raises(PackageError, match=f"are damaged .*{words}"):
        read_recorded(replace(tiny_package, path=tmp_path))
