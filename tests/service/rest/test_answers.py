"""The same arrays in every media type."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from safetensors.numpy import load

from model.image_codec import ImageLimits
from service.errors import InvalidRequest
from service.messages import (
    EmbedImagesResponse,
    EmbedTextsResponse,
    Segmentation,
    SegmentImagesResponse,
)
from service.rest.requests import (
    EmbedImagesOptions,
    EmbedTextsBody,
    MaskFormat,
    SegmentImagesOptions,
)
from service.rest.response_schemas import SegmentationBody
from service.rest.responses import (
    JSON,
    NPY,
    PNG,
    SAFETENSORS,
    check_embed_media,
    check_segment_media,
    write_image_embeddings,
    write_overlay,
    write_segmentations,
    write_text_embeddings,
)

TEXTS = EmbedTextsBody(texts=["a"])
PLAIN, BASE64 = EmbedImagesOptions(), EmbedImagesOptions(encoding="base64")


def embedded(*grids: tuple[int, int]) -> EmbedImagesResponse:
    random = np.random.default_rng(0)
    embeddings = tuple({"patches": random.random((*g, 5), dtype=np.float32)} for g in grids)
    return EmbedImagesResponse(model="m", embeddings=embeddings)


def segmented(count: int = 1) -> SegmentImagesResponse:
    labels_HW = np.array([[0, 1, 2], [2, 2, 2]], np.uint16)
    scores_HW = np.random.default_rng(0).random((2, 3), dtype=np.float32)
    mask = Segmentation(labels_HW=labels_HW, scores_HW=scores_HW, area_shares=(1 / 6, 1 / 6, 4 / 6))
    return SegmentImagesResponse(model="m", classes=("dog", "sky"), segmentations=(mask,) * count)


def from_base64(body: dict[str, Any]) -> "np.typing.NDArray[Any]":
    data = base64.b64decode(body["data"])
    return np.frombuffer(data, np.dtype(body["dtype"]).newbyteorder("<")).reshape(body["shape"])


def test_json_lists_and_base64_and_npy_and_safetensors_are_bit_equal() -> None:
    answer = embedded((2, 3), (2, 3))
    expected = np.stack([e["patches"] for e in answer.embeddings])
    listed = json.loads(write_image_embeddings(answer, JSON, PLAIN))
    coded = json.loads(write_image_embeddings(answer, JSON, BASE64))
    arrays = [
        np.array([d["patches"] for d in listed["data"]], np.float32),
        np.stack([from_base64(d["patches"]) for d in coded["data"]]),
        np.load(io.BytesIO(write_image_embeddings(answer, NPY, PLAIN))),
        load(write_image_embeddings(answer, SAFETENSORS, PLAIN))["patches"],
    ]
    for array in arrays:
        np.testing.assert_array_equal(array, expected)
    assert [d["index"] for d in listed["data"]] == [0, 1]
    assert listed["model"] == "m"


def test_images_of_several_grids_are_kept_apart() -> None:
    answer = embedded((2, 3), (3, 2))
    tensors = load(write_image_embeddings(answer, SAFETENSORS, PLAIN))
    assert {name: t.shape for name, t in tensors.items()} == {
        "patches.0": (2, 3, 5),
        "patches.1": (3, 2, 5),
    }
    with pytest.raises(InvalidRequest, match="squash"):
        write_image_embeddings(answer, NPY, PLAIN)


def test_texts_are_one_matrix() -> None:
    answer = EmbedTextsResponse(model="m", embeddings_TD=np.eye(3, dtype=np.float32))
    np.testing.assert_array_equal(
        np.load(io.BytesIO(write_text_embeddings(answer, NPY, TEXTS))), np.eye(3)
    )
    tensors = load(write_text_embeddings(answer, SAFETENSORS, TEXTS))
    np.testing.assert_array_equal(tensors["embeddings"], np.eye(3))
    data = json.loads(write_text_embeddings(answer, JSON, TEXTS))["data"]
    assert data[1] == {"index": 1, "embedding": [0, 1, 0]}


def test_masks_in_every_media_type_have_the_same_labels() -> None:
    answer, options = segmented(), SegmentImagesOptions()
    expected = answer.segmentations[0].labels_HW
    body = json.loads(write_segmentations(answer, JSON, options))["data"][0]
    png = Image.open(io.BytesIO(write_segmentations(answer, PNG, options)))
    arrays = [
        body["labels"],
        np.asarray(png),
        np.load(io.BytesIO(write_segmentations(answer, NPY, options))),
        load(write_segmentations(answer, SAFETENSORS, options))["labels"][0],
    ]
    for array in arrays:
        np.testing.assert_array_equal(array, expected)
    assert (body["height"], body["width"]) == (2, 3)


def test_json_names_the_classes_with_colour_and_area() -> None:
    body = json.loads(write_segmentations(segmented(), JSON, SegmentImagesOptions()))["data"][0]
    assert [(c["label"], c["name"]) for c in body["classes"]] == [(1, "dog"), (2, "sky")]
    assert body["classes"][1]["area_share"] == pytest.approx(4 / 6)
    assert body["background_share"] == pytest.approx(1 / 6)
    png = Image.open(io.BytesIO(write_segmentations(segmented(), PNG, SegmentImagesOptions())))
    pixel = png.convert("RGB").getpixel((2, 0))
    assert body["classes"][1]["color"] == "#" + bytes(pixel).hex()  # type: ignore[arg-type]


@pytest.mark.parametrize("media_format", ["rle", "rle_counts", "polygons"])
@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
def test_cocos_formats_give_the_masks_back(media_format: MaskFormat) -> None:
    answer, options = segmented(), SegmentImagesOptions(format=media_format)
    labels_HW = answer.segmentations[0].labels_HW
    body = json.loads(write_segmentations(answer, JSON, options))["data"][0]
    assert "labels" not in body
    SegmentationBody.model_validate(body)
    for entry in body["classes"]:
        is_in_HW = labels_HW == entry["label"]
        form = entry["segmentation"]
        if media_format != "rle":
            form = coco.frPyObjects(form, 2, 3)
        if media_format == "polygons":
            form = coco.merge(form)
        np.testing.assert_array_equal(coco.decode(form), is_in_HW)
        assert entry["area"] == is_in_HW.sum()
        rows, columns = np.nonzero(is_in_HW)
        left, top = columns.min(), rows.min()
        size = [np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert entry["bbox"] == [left, top, *size]


def test_arrays_in_json_are_bit_equal_whatever_their_layout() -> None:
    array = np.random.default_rng(0).random((5, 4), dtype=np.float32).T
    embedding = EmbedImagesResponse(model="m", embeddings=({"cls1": array},))
    plain = json.loads(write_image_embeddings(embedding, JSON, PLAIN))["data"][0]["cls1"]
    coded = json.loads(write_image_embeddings(embedding, JSON, BASE64))["data"][0]["cls1"]
    np.testing.assert_array_equal(np.array(plain, np.float32), array)
    np.testing.assert_array_equal(from_base64(coded), array)


def test_scores_are_there_where_they_were_computed() -> None:
    answer = segmented(2)
    tensors = load(write_segmentations(answer, SAFETENSORS, SegmentImagesOptions()))
    assert tensors["scores"].shape == (2, 2, 3)
    assert (
        "scores" in json.loads(write_segmentations(answer, JSON, SegmentImagesOptions()))["data"][1]
    )


def test_the_overlay_is_the_image_with_colours() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), (90, 90, 90)).save(stream, "PNG")
    limits = ImageLimits(max_bytes=10_000, max_pixels=100)
    drawn = Image.open(io.BytesIO(write_overlay(segmented(), stream.getvalue(), limits)))
    assert drawn.mode == "RGB"
    assert drawn.getpixel((0, 0)) == (90, 90, 90)
    assert drawn.getpixel((1, 0)) != (90, 90, 90)


def test_what_a_file_cannot_hold_is_refused_before_any_work() -> None:
    check_embed_media(NPY, EmbedImagesOptions(outputs=["cls1", "cls1"]))
    with pytest.raises(InvalidRequest) as caught:
        check_embed_media(NPY, EmbedImagesOptions(outputs=["cls1", "cls2"]))
    assert caught.value.param == "outputs"
    many = SegmentImagesOptions(classes=[str(i) for i in range(256)])
    for media, options, count, param in (
        (PNG, SegmentImagesOptions(), 2, "images"),
        (NPY, SegmentImagesOptions(), 2, "images"),
        (PNG, many, 1, "classes"),
        (JSON, SegmentImagesOptions(format="overlay"), 1, "format"),
        (PNG, SegmentImagesOptions(format="rle"), 1, "format"),
        (NPY, SegmentImagesOptions(format="polygons"), 1, "format"),
        (SAFETENSORS, SegmentImagesOptions(format="rle_counts"), 1, "format"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            check_segment_media(media, options, count)
        assert caught.value.param == param
