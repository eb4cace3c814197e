"""Answers beside errors, and vectors in fewer bytes, in every media type."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load

from service.errors import InvalidRequest
from service.messages import EmbedImagesResponse, EmbedTextsResponse, VectorType
from service.outputs.vectors import pack, pack_all
from service.rest.inputs import decode_images
from service.rest.requests import EmbedImagesOptions, EmbedTextsBody
from service.rest.response_schemas import EmbedImagesAnswer, EmbedTextsAnswer
from service.rest.responses import (
    JSON,
    NPY,
    PNG,
    SAFETENSORS,
    check_partial_media,
    write_image_embeddings,
    write_text_embeddings,
)

WRONG = InvalidRequest("images[1] is wrong.", code="invalid_image", param="images[1]")
PARTIAL = EmbedImagesOptions(partial=True)


def images(vector_type: VectorType = "float32", **more: Any) -> EmbedImagesResponse:
    random = np.random.default_rng(0)
    raw = [
        {"cls1": random.random(6, np.float32), "patches": random.random((2, 3, 6), np.float32)}
        for _ in range(2)
    ]
    packed = [pack_all(outputs, vector_type) for outputs in raw]
    scales = tuple(s for _, s in packed) if vector_type == "int8" else ()
    return EmbedImagesResponse(
        model="m", embeddings=tuple(rows for rows, _ in packed), scales=scales, **more
    )


def test_json_tells_errors_beside_data_by_their_places() -> None:
    sent = json.loads(write_image_embeddings(images(errors={1: WRONG}), JSON, PARTIAL))
    assert [item["index"] for item in sent["data"]] == [0, 2]
    assert sent["errors"] == [
        {
            "index": 1,
            "error": {
                "message": "images[1] is wrong.",
                "type": "invalid_request_error",
                "code": "invalid_image",
                "param": "images[1]",
            },
        }
    ]
    assert EmbedImagesAnswer.model_validate(sent).model_dump(exclude_none=True) == sent
    assert json.loads(write_image_embeddings(images(), JSON, PARTIAL))["errors"] == []
    assert "errors" not in json.loads(write_image_embeddings(images(), JSON, EmbedImagesOptions()))


def test_safetensors_name_arrays_by_their_places_and_hold_the_errors(tmp_path: Any) -> None:
    path = tmp_path / "answer.safetensors"
    path.write_bytes(write_image_embeddings(images(errors={1: WRONG}), SAFETENSORS, PARTIAL))
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"cls1.0", "cls1.2", "patches.0", "patches.2"}
        (error,) = json.loads(file.metadata()["errors"])
    assert (error["index"], error["error"]["code"]) == (1, "invalid_image")
    nothing = EmbedImagesResponse(model="m", embeddings=(), errors={0: WRONG})
    assert load(write_image_embeddings(nothing, SAFETENSORS, PARTIAL)) == {}


@pytest.mark.parametrize("media", [PNG, NPY])
def test_files_without_room_for_errors_are_refused(media: str) -> None:
    check_partial_media(media, EmbedImagesOptions())
    with pytest.raises(InvalidRequest) as caught:
        check_partial_media(media, PARTIAL)
    assert caught.value.param == "partial"


def test_texts_with_errors_are_left_out_of_json_and_zeros_in_a_matrix() -> None:
    rows_TD, scales_T = pack(np.random.default_rng(0).random((2, 6), np.float32), "int8")
    answer = EmbedTextsResponse(
        model="m", embeddings_TD=rows_TD, scales_T=scales_T, errors={0: WRONG}
    )
    body = EmbedTextsBody(texts=["a"], partial=True, dtype="int8")
    sent = json.loads(write_text_embeddings(answer, JSON, body))
    assert [item["index"] for item in sent["data"]] == [1, 2]
    assert EmbedTextsAnswer.model_validate(sent).model_dump(exclude_none=True) == sent
    tensors = load(write_text_embeddings(answer, SAFETENSORS, body))
    assert not tensors["embeddings"][0].any()
    np.testing.assert_array_equal(tensors["embeddings"][1:], rows_TD)
    np.testing.assert_array_equal(tensors["embeddings_scale"][1:], scales_T)


def test_whole_numbers_and_their_scales_are_the_same_in_every_media_type() -> None:
    answer = images("int8")
    listed = json.loads(write_image_embeddings(answer, JSON, EmbedImagesOptions(dtype="int8")))
    coded = json.loads(
        write_image_embeddings(answer, JSON, EmbedImagesOptions(dtype="int8", encoding="base64"))
    )
    tensors = load(write_image_embeddings(answer, SAFETENSORS, EmbedImagesOptions(dtype="int8")))
    assert EmbedImagesAnswer.model_validate(listed).model_dump(exclude_none=True) == listed
    for index, (rows, scales) in enumerate(zip(answer.embeddings, answer.scales, strict=True)):
        for name in ("cls1", "patches"):
            item, other = listed["data"][index], coded["data"][index][name]
            np.testing.assert_array_equal(np.array(item[name], np.int8), rows[name])
            np.testing.assert_array_equal(np.float32(item["scales"][name]), scales[name])
            assert other["dtype"] == "int8"
            raw = np.frombuffer(base64.b64decode(other["data"]), np.int8)
            np.testing.assert_array_equal(raw.reshape(other["shape"]), rows[name])
            np.testing.assert_array_equal(tensors[name][index], rows[name])
            np.testing.assert_array_equal(tensors[f"{name}_scale"][index], scales[name])


def test_npy_has_whole_numbers_as_records_with_their_scale() -> None:
    answer = images("int8")
    for name, shape in (("cls1", (2,)), ("patches", (2, 2, 3))):
        one = EmbedImagesResponse(
            model="m",
            embeddings=tuple({name: rows[name]} for rows in answer.embeddings),
            scales=tuple({name: scales[name]} for scales in answer.scales),
        )
        records = np.load(io.BytesIO(write_image_embeddings(one, NPY, EmbedImagesOptions())))
        assert (records.shape, records["values"].shape) == (shape, (*shape, 6))
        np.testing.assert_array_equal(records["values"][1], one.embeddings[1][name])
        np.testing.assert_array_equal(records["scale"][1], one.scales[1][name])
    texts_TD, scales_T = pack(np.random.default_rng(0).random((3, 6), np.float32), "int8")
    texts = EmbedTextsResponse(model="m", embeddings_TD=texts_TD, scales_T=scales_T)
    records = np.load(io.BytesIO(write_text_embeddings(texts, NPY, EmbedTextsBody(texts=["a"]))))
    np.testing.assert_array_equal(records["values"], texts_TD)


def test_half_precision_is_half_the_bytes() -> None:
    answer = images("float16")
    coded = json.loads(write_image_embeddings(answer, JSON, EmbedImagesOptions(encoding="base64")))[
        "data"
    ][0]["cls1"]
    assert (coded["dtype"], len(base64.b64decode(coded["data"]))) == ("float16", 12)
    one = EmbedImagesResponse(
        model="m", embeddings=tuple({"cls1": rows["cls1"]} for rows in answer.embeddings)
    )
    array = np.load(io.BytesIO(write_image_embeddings(one, NPY, EmbedImagesOptions())))
    assert array.dtype == np.float16


def test_what_is_no_base64_keeps_its_place_where_that_is_asked_for() -> None:
    texts, fetched = ["aGVsbG8=", "%", "https://x"], {2: WRONG}
    first, wrong, url = decode_images(texts, fetched, is_partial=True)
    assert (first, url) == (b"hello", WRONG)
    assert isinstance(wrong, InvalidRequest)
    assert (wrong.code, wrong.param) == ("invalid_base64", "images[1]")
    with pytest.raises(InvalidRequest):
        decode_images(texts, fetched)
