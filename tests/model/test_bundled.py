"""The bundled student reaches its required scores and segments the README's example."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.manifest import ScoreEntry
from model.package import ModelPackage, open_package
from model.preprocess import prepare_image, target_size
from model.runtime.load import load_runtime
from model.segmentation import segment
from model.text import TextTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
MAIN_SPLIT = "Fluent 3D (unseen style), 50 everyday names"


@pytest.fixture(scope="module")
def bundled() -> ModelPackage:
    return open_package("bundled-student")


def _score(package: ModelPackage, row: str, metric: str) -> ScoreEntry:
    scores = package.manifest.scores
    return next(s for s in scores if (s.split, s.row, s.metric) == (MAIN_SPLIT, row, metric))


def test_zero_shot_scores_are_high_enough(bundled: ModelPackage) -> None:
    student = _score(bundled, "student", "mIoU")
    assert student.count == 500
    assert student.value >= 20
    for seed in ("student", "student, seed 1", "student, seed 2"):
        assert _score(bundled, seed, "mIoU").value >= 20
        for other in ("its CLS1 painted", "teacher"):
            difference = _score(bundled, f"{seed} - {other}", "mIoU")
            assert difference.low is not None
            assert difference.low > 0


def test_every_export_is_close_to_torch_and_bf16_keeps_the_masks(bundled: ModelPackage) -> None:
    parity = bundled.manifest.parity
    assert [entry.failures for entry in parity if not entry.passed] == []
    ways = {(entry.file, entry.runtime, entry.precision): entry for entry in parity}
    for file in ("onnx/vision_model.onnx", "onnx/text_model.onnx"):
        for runtime in ("onnx", "openvino"):
            assert ways[file, runtime, "fp32"].max_abs_diff < 1e-4
    rounded = ways["onnx/vision_model.onnx", "openvino", "bf16"]
    assert rounded.mask_agreement is not None
    assert rounded.mask_agreement >= 0.995


def test_the_objects_of_the_example_scene_are_found(bundled: ModelPackage) -> None:
    pixels = np.asarray(Image.open(EXAMPLES / "scene.png").convert("RGB"))
    manifest = bundled.manifest
    size_hw = target_size(*pixels.shape[:2], resolution=manifest.native_size, fit="aspect")
    runtime = load_runtime(bundled)
    tokens = TextTokenizer.from_package(bundled).encode(["burger", "sunflower", "book"])
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
    # Row and column inside each object, looked up in the image.
    burger, sunflower, book = (120, 305), (325, 95), (320, 330)
    assert [int(mask.labels_HW[place]) for place in (burger, sunflower, book)] == [1, 2, 3]
