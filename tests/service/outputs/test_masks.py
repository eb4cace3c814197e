"""Masks and embeddings from raw outputs, and masks as PNG and npy."""

import io
import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from model.general_words import GeneralWords
from model.segmentation import Background, l2_normalize
from service.images import Windows
from service.messages import Segmentation, SegmentClass, SegmentImagesRequest
from service.outputs.colours import LEAST_CONTRAST, PALETTE, class_color, contrasting
from service.outputs.masks import (
    MaskRules,
    SeenImage,
    class_embeddings,
    encode_labels_png,
    encode_mask_png,
    encode_npy,
    encode_overlay_png,
    image_outputs,
    segment_image,
    text_embedding,
)
from service.outputs.slide import Geometry
from service.validation import PromptGroup
from service.waiting import run_slice
from tipserve_client import ClassArea
from tipserve_client import Segmentation as ClientMask


@pytest.mark.parametrize(
    ("encode", "dtype", "mode"),
    [
        (encode_mask_png, np.uint8, "P"),
        (encode_mask_png, np.uint16, "P"),
        (encode_labels_png, np.uint8, "L"),
        (encode_labels_png, np.uint16, "I;16"),
    ],
)
@pytest.mark.parametrize("size_hw", [(1, 1), (37, 61)])
def test_a_png_has_the_labels_as_pixels(
    size_hw: tuple[int, int], encode: Any, dtype: Any, mode: str
) -> None:
    most = 256 if mode == "P" else np.iinfo(dtype).max
    labels_HW = np.random.default_rng(0).integers(0, most, size_hw).astype(dtype)
    data = encode(labels_HW)
    Image.open(io.BytesIO(data)).verify()
    image = Image.open(io.BytesIO(data))
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image), labels_HW)
    if mode != "P":
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert read is not None
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, labels_HW)


def test_an_overlay_is_the_same_of_8_and_16_bit_labels() -> None:
    random = np.random.default_rng(1)
    pixels_HW3 = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    labels_HW = random.integers(0, 256, (20, 30), dtype=np.uint8)
    drawn = encode_overlay_png(labels_HW, pixels_HW3)
    assert drawn == encode_overlay_png(labels_HW.astype(np.uint16), pixels_HW3)
    large, same = (np.full((20, 30), label, np.uint16) for label in (300, 45))
    assert encode_overlay_png(large, pixels_HW3) == encode_overlay_png(same, pixels_HW3)


@pytest.mark.parametrize("num_classes", [2, 6, 8, 12])
def test_an_overlay_tints_and_outlines_classes_as_the_client_does(num_classes: int) -> None:
    random = np.random.default_rng(2)
    pixels_HW3 = random.integers(0, 256, (1400, 500, 3), dtype=np.uint8)  # two bands of rows
    # Under the classes are their own colours, so that all need others.
    pixels_HW3 //= 4
    cells = random.integers(0, num_classes + 1, (14, 5), dtype=np.uint8)
    labels_HW = np.kron(cells, np.ones((100, 100), np.uint8))
    pixels_HW3 += PALETTE[labels_HW] // 4 * 3
    numbers = range(1, num_classes + 1)
    classes = tuple(
        ClassArea(label=k, name="", color=class_color(k), area_share=0, score=0) for k in numbers
    )
    mask = ClientMask(
        labels=labels_HW.astype(np.uint16), scores=None, classes=classes, background_share=0
    )
    drawn = Image.open(io.BytesIO(encode_overlay_png(labels_HW, pixels_HW3)))
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(mask.overlay(pixels_HW3)))


def test_a_class_has_a_colour_that_differs_from_the_image_and_from_other_classes() -> None:
    labels_HW = np.repeat(np.arange(4, dtype=np.uint8), 300)[None].repeat(600, axis=0)
    sky, leaves = (120, 190, 240), (60, 90, 40)
    pixels_HW3 = np.zeros((600, 1200, 3), np.uint8)
    pixels_HW3[:, 300:600], pixels_HW3[:, 600:] = sky, leaves
    chosen_K3 = contrasting(PALETTE, labels_HW, pixels_HW3).astype(int)
    for label, below in ((1, sky), (2, leaves), (3, leaves)):
        assert np.linalg.norm(chosen_K3[label] - below) >= LEAST_CONTRAST
    assert len(np.unique(chosen_K3[1:4], axis=0)) == 3
    assert (chosen_K3[4:] == PALETTE[4:]).all()
    dark_K3 = contrasting(PALETTE, labels_HW, np.zeros_like(pixels_HW3))
    assert (dark_K3 == PALETTE).all(), "colours that differ stay"


def test_labels_above_255_and_overlays_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        encode_mask_png(np.array([[256]], np.uint16))
    with pytest.raises(ValueError, match="does not fit"):
        encode_overlay_png(np.zeros((2, 3), np.uint16), np.zeros((3, 2, 3), np.uint8))


def test_a_class_has_the_colour_that_its_png_shows() -> None:
    image = Image.open(io.BytesIO(encode_mask_png(np.array([[3]], np.uint16)))).convert("RGB")
    assert class_color(3) == "#{:02x}{:02x}{:02x}".format(*image.getpixel((0, 0)))  # type: ignore[misc]
    assert class_color(256) == class_color(1)


@pytest.mark.parametrize("dtype", [">u2", "<u2", ">f4"])
def test_npy_is_little_endian_and_equal(dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).T.astype(dtype)
    data = encode_npy(array)
    assert b"'<" in data[:80]
    np.testing.assert_array_equal(np.load(io.BytesIO(data)), array)


EYE = np.eye(3, dtype=np.float32)


def segmented(parts: list[Any], *arguments: Any) -> Segmentation:
    outputs = [{"values": part} for part in parts]
    classes_KD, geometry, asked = arguments
    background = Background(
        threshold=asked.background_threshold,
        num_classes=len(asked.background_classes),
        level=asked.background_level,
        least_cosine=0.4,
    )
    rules = MaskRules(features="values", temperature=0.1, background=background)
    steps = segment_image([SeenImage(outputs, geometry)], classes_KD, asked, rules)
    found = run_slice(steps, math.inf)
    assert found is not None
    return found[0]


def request(num_classes: int, num_background: int = 0, **options: object) -> SegmentImagesRequest:
    names = [SegmentClass(name=str(n)) for n in range(num_classes + num_background)]
    return SegmentImagesRequest(
        images=(b"",),
        classes=tuple(names[:num_classes]),
        background_classes=tuple(names[num_classes:]),
        **options,  # type: ignore[arg-type]
    )


def test_only_requested_outputs_are_returned_as_unit_vectors_or_raw_in_a_grid() -> None:
    raw = {"cls1": np.array([3, 4], np.float32), "cls2": EYE[0]}
    unit = image_outputs(raw, ["cls1"], grid_hw=(1, 1), normalize=True)
    assert unit.keys() == {"cls1"}
    np.testing.assert_allclose(unit["cls1"], [0.6, 0.8])
    assert image_outputs(raw, ["cls1"], grid_hw=(1, 1), normalize=False)["cls1"].tolist() == [3, 4]
    patches = {"patches": np.arange(12, dtype=np.float32).reshape(6, 2)}
    outputs = image_outputs(patches, ["patches"], grid_hw=(2, 3), normalize=False)
    assert outputs["patches"].shape == (2, 3, 2)
    assert outputs["patches"][1, 0].tolist() == [6, 7]


def test_several_prompts_are_averaged_as_unit_vectors() -> None:
    raw = {"a": np.array([2, 0], np.float32), "b": np.array([0, 9], np.float32)}
    assert text_embedding(["a"], raw, normalize=False).tolist() == [2, 0]
    np.testing.assert_allclose(text_embedding(["a", "b"], raw, normalize=False), [0.5, 0.5])
    np.testing.assert_allclose(text_embedding(["a", "b"], raw, normalize=True), [0.5**0.5] * 2)
    both = PromptGroup(param="classes[0]", prompts=("a", "b"))
    classes = class_embeddings([both, replace(both, num_vectors=2)], raw)
    np.testing.assert_allclose(classes.vectors_VD, [[0.5**0.5] * 2, [1, 0], [0, 1]])
    cosines_K1 = classes.cosines(np.array([[0.6, 0.8]], np.float32))
    np.testing.assert_allclose(cosines_K1, [[1.4 * 0.5**0.5], [0.8]], rtol=1e-6)


def test_only_a_class_without_prompts_stands_for_the_members_of_its_name() -> None:
    raw = dict(zip(("cat", "dog"), EYE, strict=False))
    words = GeneralWords({"dog": ["poodle"]}, {"dog": EYE[[2, 2]]})
    cat, dog = (PromptGroup(param="classes", prompts=(name,), name=name) for name in raw)
    for group, sizes, label in ((dog, [1, 2], 2), (replace(dog, name=None), [1, 1], 1)):
        classes = class_embeddings([cat, group], raw, words)
        assert classes.sizes == sizes
        poodle = segmented([EYE[2:]], classes, Geometry((1, 1), (1, 1)), request(2))
        assert poodle.labels_HW.item() == label


def test_a_larger_size_counts_as_much_as_the_first() -> None:
    geometry = Geometry((1, 3), (1, 3))
    parts = [
        l2_normalize(np.abs(noise))
        for noise in np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    ]
    views = [SeenImage([{"values": part}], geometry) for part in parts]
    asked = request(3, include_all_scores=True, size="patch")
    found = run_slice(
        segment_image(views, EYE, asked, MaskRules(features="values", temperature=1)), math.inf
    )
    assert found is not None
    assert found[0].cosines_KHW is not None
    mean_KN = (parts[0] + parts[1]).T / 2
    np.testing.assert_allclose(found[0].cosines_KHW, mean_KN[:, None], rtol=1e-5)


def test_labels_count_from_one_and_background_is_zero() -> None:
    mask = segmented([EYE[:2]], EYE, Geometry((1, 2), (2, 4)), request(3))
    assert mask.labels_HW.tolist() == [[1, 1, 2, 2]] * 2
    assert mask.area_shares == (0.0, 0.5, 0.5, 0.0)
    assert mask.scores_HW is None
    mask = segmented([EYE[:2]], EYE[:2], Geometry((1, 2), (1, 2)), request(1, 1))
    assert (mask.labels_HW.tolist(), mask.area_shares) == ([[1, 0]], (0.5, 0.5))
    options: Any = {"background_threshold": 0.8, "include_scores": True}
    features = np.array([[1, 0, 0], [1, 1, 0]], np.float32)
    mask = segmented([features], EYE[:1], Geometry((1, 2), (1, 2)), request(1, **options))
    assert mask.labels_HW.tolist() == [[1, 0]]
    assert mask.scores_HW is not None
    np.testing.assert_allclose(mask.scores_HW, [[1, 0.5**0.5]], rtol=1e-6)


# A whole image is separated from its background, so its maps fall faster.
@pytest.mark.parametrize(
    ("windows", "levels"), [(None, (0.6, 0.4)), (Windows(side=14, stride=14), (0.7, 0.5))]
)
def test_background_by_itself_is_what_is_far_below_the_peak_of_a_class(
    windows: Windows | None, levels: tuple[float, float]
) -> None:
    # The second class is best at the last patch, by a small cosine: it is absent.
    cosine_N2 = np.array([[1, 0], [0.8, 0], [0.6, 0], *[[0, 0]] * 12, [0, 0.3]], np.float32)
    rest_N = np.sqrt(1 - np.square(cosine_N2).sum(axis=1))
    features_ND = np.concatenate([cosine_N2, rest_N[:, None]], axis=1)
    parts = [features_ND] if windows is None else list(features_ND[:, None])
    geometry = Geometry((1, 16 // len(parts)), (1, 16), (14, 224), windows)
    asked = request(2, background_level=levels[0], include_class_scores=True)
    mask = segmented(parts, EYE[:2], geometry, asked)
    assert mask.labels_HW.tolist() == [[1, 1, *[0] * 14]]
    assert mask.area_shares == (7 / 8, 1 / 8, 0.0)
    assert 0.7 < mask.class_scores[0] < 0.9, "the background competes as well"
    assert mask.class_scores[1] == 0
    asked = request(1, 1, background_level=levels[1])
    mask = segmented(parts, np.array([[1, 0, 0], [1, 4, 0]], np.float32), geometry, asked)
    assert mask.labels_HW.tolist() == [[1, 1, 1, *[0] * 13]]
