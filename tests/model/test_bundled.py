"""The bundled models reach their required scores and segment the README's examples."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.graphs import TEXT_FILE, VISION_FILE, graph_file
from model.manifest import RECORDED_FILE, ScoreEntry
from model.package import ModelPackage, open_package
from model.preprocess import prepare_image, target_size
from model.runtime.choice import Checks, Machine, RuntimeRequest, choose
from model.runtime.load import load_runtime
from model.runtime.machine import CpuFeature, Hardware, InstalledLibraries
from model.segmentation import segment
from model.text import TextTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
MAIN_SPLIT = "Fluent 3D (unseen style), 50 everyday names"
ROOMS_SPLIT = "rooms with furniture of Scopia, rendered"
STAMPS_SPLIT = "photo stamps of Tux Paint, 69 names, 23 of them shown"
# Row and column inside each thing, looked up in the images.
SHOWN = {
    "scene.png": {"burger": (120, 305), "sunflower": (325, 95), "book": (320, 330)},
    "squirrel.jpg": {"squirrel": (210, 230), "leaf": (60, 250)},
}


@pytest.fixture(scope="module", params=["bundled", "bundled-student"])
def package(request: pytest.FixtureRequest) -> ModelPackage:
    return open_package(str(request.param))


def _score(package: ModelPackage, row: str, metric: str, split: str = MAIN_SPLIT) -> ScoreEntry:
    scores = package.manifest.scores
    return next(s for s in scores if (s.split, s.row, s.metric) == (split, row, metric))


def test_scores_are_high_enough_and_clearly_better_than_controls() -> None:
    bundled, student = (open_package(n, verify=False) for n in ("bundled", "bundled-student"))
    for split, least in ((MAIN_SPLIT, 38), (STAMPS_SPLIT, 33)):
        found = _score(bundled, "student", "mIoU", split)
        assert (found.count, found.value >= least) == (500, True)
        assert found.low is not None
        assert found.low > 1.5 * _score(bundled, "student, its CLS1 painted", "mIoU", split).value
        assert found.low > _score(student, "student", "mIoU", split).value
    assert _score(student, "student", "mIoU").value >= 32
    gain = _score(student, "student - its CLS1 painted", "mIoU")
    assert gain.low is not None
    assert gain.low > 15
    for metric in ("RMSE (m)", "mean angle (degrees)"):
        for control in ("training mean", "same head on shuffled weights"):
            difference = _score(bundled, f"head - {control}", metric, ROOMS_SPLIT)
            assert difference.high is not None
            assert difference.high < 0


@pytest.mark.parametrize("direction", ["image to text", "text to image"])
def test_the_student_finds_scenes_by_sentences(direction: str) -> None:
    student = open_package("bundled-student", verify=False)
    found = _score(student, "student", f"{direction} R@1", f"{MAIN_SPLIT}; scene captions, CLS2")
    assert (found.count, found.value > 40) == (500, True)


def test_every_export_is_close_to_torch(package: ModelPackage) -> None:
    ways = {(e.file, e.runtime, e.precision): e for e in package.manifest.parity}
    # What fails in fewer bits is recorded, and not chosen by default.
    assert all(entry.passed for (_, _, name), entry in ways.items() if name == "fp32")
    for file, runtime in product((VISION_FILE, TEXT_FILE), ("onnx", "openvino")):
        assert ways[file, runtime, "fp32"].max_abs_diff < 1e-4
    half = graph_file("vision", "fp16")
    (entry,) = (found for (file, *_), found in ways.items() if file == half)
    assert entry.passed
    assert (entry.mask_agreement or 0) >= 0.998
    # Most of its weights are those that the float32 graph stores.
    assert package.manifest.files[half].size_bytes < 5_000_000
    assert RECORDED_FILE in package.manifest.files
    if package.manifest.name == "bundled-student":
        assert (ways[VISION_FILE, "openvino", "bf16"].mask_agreement or 0) >= 0.995


CPUS: tuple[frozenset[CpuFeature], ...] = (
    frozenset(),
    frozenset({"avx2"}),
    frozenset({"avx2", "vnni"}),
    frozenset({"avx2", "vnni", "bf16"}),
    frozenset({"avx2", "vnni", "bf16", "fast_bf16"}),
)
ON_CPUS = InstalledLibraries(
    onnx=frozenset({"cpu"}), openvino=True, tensorrt=False, torch=frozenset({"cpu"})
)


@pytest.mark.parametrize("features", CPUS)
@pytest.mark.parametrize("runtime", ["auto", "onnx", "openvino"])
def test_what_gpus_use_changes_no_choice_on_cpus(
    package: ModelPackage, features: frozenset[CpuFeature], runtime: str
) -> None:
    manifest, half = package.manifest, graph_file("vision", "fp16")
    files = {n: e for n, e in manifest.files.items() if n not in {half, RECORDED_FILE}}
    parity = [entry for entry in manifest.parity if entry.file != half]
    without = manifest.model_copy(update={"files": files, "parity": parity})
    machine = Machine(Hardware(cpu_features=features), ON_CPUS)
    request = RuntimeRequest(runtime=runtime)
    checked = choose(manifest, request, machine, Checks(are_possible=True))
    assert checked == choose(without, request, machine)
    assert not Checks(are_possible=True).are_due(manifest, checked)
    assert checked.precision in {"fp32", "int8", "bf16"}


@pytest.mark.parametrize("features", CPUS)
def test_the_bundled_model_needs_no_openvino(features: frozenset[CpuFeature]) -> None:
    hardware, manifest = Hardware(cpu_features=features), open_package("bundled").manifest
    chosen = [
        choose(manifest, RuntimeRequest(), Machine(hardware, libraries))
        for libraries in (ON_CPUS, replace(ON_CPUS, openvino=False))
    ]
    assert [choice.runtime for choice in chosen] == ["onnx", "onnx"]
    assert chosen[0].precision == chosen[1].precision


@pytest.mark.parametrize(
    ("source", "image"),
    [("bundled", "scene.png"), ("bundled", "squirrel.jpg"), ("bundled-student", "scene.png")],
)
def test_the_things_in_the_examples_are_found(source: str, image: str) -> None:
    package, shown = open_package(source), SHOWN[image]
    pixels = np.asarray(Image.open(EXAMPLES / image).convert("RGB"))
    manifest = package.manifest
    size_hw = target_size(
        *pixels.shape[:2],
        resolution=manifest.native_size,
        fit="aspect",
        multiple=manifest.size_multiple,
    )
    runtime = load_runtime(package)
    tokens = TextTokenizer.from_package(package).encode(list(shown))
    classes_KD = runtime.encode_texts(tokens.token_ids_BL, tokens.mask_BL)
    output = runtime.encode_images(prepare_image(pixels, size_hw)[None])
    runtime.close()
    features_BND = (
        output.patches_BND if manifest.zero_shot.features == "patches" else output.values_BND
    )
    mask = segment(
        features_BND[0],
        classes_KD,
        grid_hw=output.grid_hw,
        size_hw=(pixels.shape[0], pixels.shape[1]),
    )
    found = {name: int(mask.labels_HW[place]) for name, place in shown.items()}
    assert found == {name: label for label, name in enumerate(shown, start=1)}
