"""The foreground, for classes that mean people and for animals."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.foreground import ANIMAL_SHARE, BASE, GAIN, Foreground, ForegroundFinder
from model.general_words import read_words
from model.package import ModelPackage, open_package
from model.runtime import onnx_runtime
from model.runtime.base import MissingRuntimeError
from model.runtime.onnx_runtime import load_foreground

CLOTHES, ANIMAL = np.eye(2, 4, dtype=np.float32)
SQUIRREL = Path(__file__).parents[2] / "examples" / "squirrel.jpg"


@pytest.mark.parametrize("front", [0.0, 1.0])
def test_what_stands_in_front_is_people_where_it_looks_like_clothes(front: float) -> None:
    def find_foreground(pixels_13HW: NDArray[np.float32]) -> NDArray[np.float32]:
        assert pixels_13HW.shape == (1, 3, 256, 256)
        assert 0 <= pixels_13HW.min() <= pixels_13HW.max() <= 1
        return np.full((1, 1, 256, 256), front, np.float32)

    left_w, right_w = np.full((8, 6, 4), CLOTHES), np.full((8, 6, 4), ANIMAL)
    features_hwD = np.concatenate([left_w, right_w], axis=1)
    cosine_Khw = np.moveaxis(features_hwD[..., [1, 0]], -1, 0)  # an animal, a person
    maps_KYX = cosine_Khw.repeat(2, axis=1).repeat(2, axis=2)
    before_KYX = maps_KYX.copy()
    finder = ForegroundFinder(find_foreground, ANIMAL[None])
    found = finder.find(np.zeros((3, 16, 24), np.uint8), features_hwD.reshape(-1, 4))
    found.raise_maps(maps_KYX, cosine_Khw, people=[1])
    added_KYX = maps_KYX - before_KYX
    assert (added_KYX[0] == 0).all(), "other classes keep their maps"
    np.testing.assert_allclose(added_KYX[1, :, :6], front * GAIN - BASE, atol=1e-3)
    np.testing.assert_allclose(added_KYX[1, :, -6:], -BASE, atol=1e-3)


def test_the_map_of_an_animal_rises_in_front_and_falls_elsewhere() -> None:
    front = Foreground(np.array([[0, 0, 255, 255]] * 4, np.uint8), np.zeros(4, np.float32))
    maps_KYX = np.random.default_rng(0).random((3, 8, 8), np.float32)
    maps_KYX[2] *= 0.1 / maps_KYX[2].max()
    before_KYX = maps_KYX.copy()
    front.raise_maps(maps_KYX, maps_KYX, animals=[1, 2], least_cosine=0.12)
    added_KYX = maps_KYX - before_KYX
    assert (added_KYX[[0, 2]] == 0).all(), "other classes and absent animals keep their maps"
    half = ANIMAL_SHARE / 2 * np.ptp(before_KYX[1])
    np.testing.assert_allclose(added_KYX[1, :, -2:], half, atol=1e-6)
    np.testing.assert_allclose(added_KYX[1, :, :2], -half, atol=1e-6)


def test_many_classes_of_people_take_no_copy_of_their_maps() -> None:
    front = Foreground(np.full((4, 4), 255, np.uint8), np.zeros(16, np.float32))
    maps_KYX, cosine_Khw = np.zeros((64, 128, 128), np.float32), np.ones((64, 4, 4), np.float32)
    tracemalloc.start()
    front.raise_maps(maps_KYX, cosine_Khw, people=range(64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert maps_KYX.all()
    assert peak < maps_KYX.nbytes / 4


@pytest.mark.parametrize(
    ("name", "is_animal"),
    [
        ("squirrel", True),
        ("Fox squirrel", True),
        ("dogs", True),
        ("animal", True),
        ("insect", True),
        ("person", False),
        ("drum", False),
        ("dog house", False),
        ("", False),
    ],
)
def test_an_animal_is_known_by_the_last_word_of_its_name(name: str, is_animal: bool) -> None:
    words = read_words(open_package("bundled"))
    assert words is not None
    assert ForegroundFinder.of(lambda pixels: pixels, words).is_animal(name) == is_animal


# Means of 64 parts of 32 x 32 pixels, by the published file in LiteRT 2.3.0.
FRONT = [
    [0.0, 0.005, 0.001, 0.003, 0.074, 0.201, 0.337, 0.254],
    [0.007, 0.001, 0.0, 0.08, 0.67, 0.821, 0.517, 0.497],
    [0.038, 0.158, 0.309, 0.878, 0.899, 0.902, 0.872, 0.845],
    [0.081, 0.24, 0.545, 0.995, 0.739, 0.556, 0.796, 0.997],
    [0.281, 0.387, 0.872, 1.0, 0.919, 0.863, 0.892, 1.0],
    [0.001, 0.019, 0.902, 1.0, 1.0, 0.999, 1.0, 1.0],
    [0.065, 0.002, 0.381, 0.967, 1.0, 0.942, 0.97, 1.0],
    [0.144, 0.165, 0.268, 0.974, 1.0, 0.934, 0.982, 0.946],
]


def test_the_network_is_the_published_one() -> None:
    package = open_package("bundled")
    finder = load_foreground(package, read_words(package))
    assert finder is not None
    pixels = np.asarray(Image.open(SQUIRREL).convert("RGB").resize((256, 256)), np.float32) / 255
    front_HW = finder.find_foreground(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)[None]))[0, 0]
    means_hw = front_HW.reshape(8, 32, 8, 32).mean(axis=(1, 3))
    np.testing.assert_allclose(means_hw, FRONT, atol=2e-3)


def test_other_packages_and_other_runtimes_have_no_finder(
    tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = open_package("bundled")
    words = read_words(package)
    assert load_foreground(tiny_package, words) is None

    def missing() -> None:
        raise MissingRuntimeError("not installed")

    monkeypatch.setattr(onnx_runtime, "import_onnxruntime", missing)
    assert load_foreground(package, words) is None
