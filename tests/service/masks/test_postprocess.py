"""From raw outputs to answers, on arrays small enough to check by hand."""

from typing import Any

import numpy as np
import pytest

from service.messages import SegmentClass, SegmentImagesRequest
from service.outputs.masks import class_embeddings, image_outputs, segment_image, text_embedding
from service.outputs.slide import Geometry

EYE = np.eye(3, dtype=np.float32)
RAW = {"cls1": np.array([3, 4], np.float32), "patches": np.arange(12, dtype=np.float32) + 1}


def request(num_classes: int, num_background: int = 0, **options: object) -> SegmentImagesRequest:
    names = [SegmentClass(name=str(n)) for n in range(num_classes + num_background)]
    return SegmentImagesRequest(
        images=(b"",),
        classes=tuple(names[:num_classes]),
        background_classes=tuple(names[num_classes:]),
        **options,  # type: ignore[arg-type]
    )


def test_patches_are_a_grid_row_by_row() -> None:
    raw = {"patches": np.arange(12, dtype=np.float32).reshape(6, 2)}
    outputs = image_outputs(raw, ["patches"], grid_hw=(2, 3), normalize=False)
    assert outputs["patches"].shape == (2, 3, 2)
    assert outputs["patches"][1, 0].tolist() == [6, 7]


def test_normalising_is_a_choice_and_only_what_was_asked_for_is_there() -> None:
    raw = {**RAW, "cls2": RAW["cls1"]}
    unit = image_outputs(raw, ["cls1"], grid_hw=(1, 1), normalize=True)
    assert unit.keys() == {"cls1"}
    np.testing.assert_allclose(unit["cls1"], [0.6, 0.8])
    assert image_outputs(raw, ["cls1"], grid_hw=(1, 1), normalize=False)["cls1"].tolist() == [3, 4]


def test_a_text_alone_is_itself_and_several_prompts_are_averaged_as_unit_vectors() -> None:
    raw = {"a": np.array([2, 0], np.float32), "b": np.array([0, 9], np.float32)}
    assert text_embedding(["a"], raw, normalize=False).tolist() == [2, 0]
    np.testing.assert_allclose(text_embedding(["a", "b"], raw, normalize=False), [0.5, 0.5])
    np.testing.assert_allclose(text_embedding(["a", "b"], raw, normalize=True), [0.5**0.5] * 2)
    np.testing.assert_allclose(class_embeddings([["a", "b"]], raw), [[0.5**0.5] * 2])


def test_labels_count_from_one_and_areas_sum_to_one() -> None:
    mask = segment_image([EYE[:2]], EYE, Geometry((1, 2), (2, 4)), request(3))
    assert mask.labels_HW.tolist() == [[1, 1, 2, 2]] * 2
    assert mask.area_shares == (0.0, 0.5, 0.5, 0.0)
    assert mask.scores_HW is None


def test_background_classes_become_zero() -> None:
    mask = segment_image([EYE[:2]], EYE[:2], Geometry((1, 2), (1, 2)), request(1, 1))
    assert mask.labels_HW.tolist() == [[1, 0]]
    assert mask.area_shares == (0.5, 0.5)


def test_a_threshold_makes_background_and_scores_are_sent_if_asked() -> None:
    options: Any = {"background_threshold": 0.8, "include_scores": True}
    features = np.array([[1, 0, 0], [1, 1, 0]], np.float32)
    mask = segment_image([features], EYE[:1], Geometry((1, 2), (1, 2)), request(1, **options))
    assert mask.labels_HW.tolist() == [[1, 0]]
    assert mask.scores_HW is not None
    np.testing.assert_allclose(mask.scores_HW, [[1, 0.5**0.5]], rtol=1e-6)


@pytest.mark.parametrize("num_classes", [1, 300])
def test_labels_are_uint16_in_answers_whatever_they_are_held_in(num_classes: int) -> None:
    classes_KD = np.eye(num_classes, dtype=np.float32)
    mask = segment_image(
        [classes_KD[-1:]], classes_KD, Geometry((1, 1), (1, 1)), request(num_classes)
    )
    assert mask.labels_HW.dtype == (np.uint8 if num_classes < 256 else np.uint16)
    assert mask.wire_labels.dtype == np.uint16
    assert mask.wire_labels.tolist() == [[num_classes]]
