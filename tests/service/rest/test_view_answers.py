"""The same classes and features in every media type."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from service.errors import InvalidRequest
from service.messages import (
    Classification,
    ClassifyImagesResponse,
    FloatArray,
    VisualizeFeaturesResponse,
)
from service.rest.requests import ClassifyImagesOptions, VisualizeFeaturesOptions
from service.rest.response_schemas import ClassifyImagesAnswer, VisualizeFeaturesAnswer
from service.rest.responses import (
    JSON,
    NPY,
    PNG,
    SAFETENSORS,
    check_classify_media,
    check_view_media,
    write_classifications,
    write_views,
)

PLAIN = ClassifyImagesOptions()


def floats(*values: float) -> FloatArray:
    return np.array(values, np.float32)


FOUND = Classification(
    labels_K=np.array([3, 1, 2], np.uint16),
    probabilities_K=floats(0.6, 0.3, 0.1),
    cosines_K=floats(0.25, 0.125, -0.5),
)
CLASSES = ClassifyImagesResponse(
    model="m", classes=("dog", "sky", "sea"), classifications=(FOUND, FOUND)
)


def test_classes_are_sorted_in_json_and_safetensors_and_in_order_in_npy() -> None:
    sent = json.loads(write_classifications(CLASSES, JSON, PLAIN))
    assert ClassifyImagesAnswer.model_validate(sent).model_dump(exclude_none=True) == sent
    first = sent["data"][1]["classes"][0]
    assert (sent["data"][1]["index"], first["label"], first["name"]) == (1, 3, "sea")
    assert np.float32(first["probability"]) == FOUND.probabilities_K[0]
    tensors = load(write_classifications(CLASSES, SAFETENSORS, PLAIN))
    np.testing.assert_array_equal(tensors["labels"], [FOUND.labels_K] * 2)
    np.testing.assert_array_equal(tensors["cosines"], [FOUND.cosines_K] * 2)
    np.testing.assert_array_equal(tensors["probabilities"], [FOUND.probabilities_K] * 2)
    ordered_BK = np.load(io.BytesIO(write_classifications(CLASSES, NPY, PLAIN)))
    np.testing.assert_array_equal(ordered_BK, [floats(0.3, 0.1, 0.6)] * 2)


def test_npy_has_no_place_for_some_classes_only() -> None:
    check_classify_media(NPY, PLAIN)
    check_classify_media(JSON, ClassifyImagesOptions(top_k=1))
    with pytest.raises(InvalidRequest, match="top_k"):
        check_classify_media(NPY, ClassifyImagesOptions(top_k=1))


def view_answer(kind: str) -> VisualizeFeaturesResponse:
    random = np.random.default_rng(0)
    made: Any = {
        "colors": random.random((4, 6, 3), np.float32),
        "component": random.random((4, 6), np.float32),
        "groups": random.integers(1, 4, (4, 6)).astype(np.uint16),
    }
    return VisualizeFeaturesResponse(model="m", maps=(made[kind],))


@pytest.mark.parametrize("kind", ["colors", "component", "groups"])
def test_maps_in_every_media_type_are_equal(kind: Any) -> None:
    answer = view_answer(kind)
    expected = answer.maps[0]
    options = VisualizeFeaturesOptions(kind=kind)
    sent = json.loads(write_views(answer, JSON, options))
    assert VisualizeFeaturesAnswer.model_validate(sent).model_dump(exclude_none=True) == sent
    (listed,) = sent["data"]
    (coded,) = json.loads(
        write_views(answer, JSON, VisualizeFeaturesOptions(kind=kind, encoding="base64"))
    )["data"]
    raw = np.frombuffer(base64.b64decode(coded["features"]["data"]), coded["features"]["dtype"])
    arrays = [
        np.array(listed["features"], expected.dtype),
        raw.reshape(coded["features"]["shape"]),
        np.load(io.BytesIO(write_views(answer, NPY, options))),
        load(write_views(answer, SAFETENSORS, options))["features"][0],
    ]
    for array in arrays:
        np.testing.assert_array_equal(array, expected)
    image = Image.open(io.BytesIO(write_views(answer, PNG, options)))
    assert image.size == (6, 4)
    if kind == "groups":
        shares = [group["area_share"] for group in listed["groups"]]
        np.testing.assert_allclose(shares, [(expected == k).mean() for k in (1, 2, 3)])
    else:
        assert "groups" not in listed


def test_files_hold_one_map() -> None:
    for media in (PNG, NPY):
        check_view_media(media, 1)
        with pytest.raises(InvalidRequest, match="one image"):
            check_view_media(media, 2)
    check_view_media(JSON, 2)
