"""The same map in every media type."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from service.errors import InvalidRequest
from service.messages import EstimateMapsResponse
from service.rest.requests import DepthOptions, MapOptions, NormalsOptions
from service.rest.response_schemas import DepthAnswer, NormalsAnswer
from service.rest.responses import JSON, NPY, PNG, SAFETENSORS, check_map_media, write_maps

DEPTH_HW = np.random.default_rng(0).random((4, 6), np.float32)
NORMALS_HW3 = np.random.default_rng(1).random((4, 6, 3), np.float32)
DEPTH = EstimateMapsResponse(model="m", maps=(DEPTH_HW,))
NORMALS = EstimateMapsResponse(model="m", maps=(NORMALS_HW3,))
BOTH = pytest.mark.parametrize(
    ("answer", "options"), [(DEPTH, DepthOptions), (NORMALS, NormalsOptions)]
)


@BOTH
def test_arrays_are_bit_equal(answer: EstimateMapsResponse, options: type[MapOptions]) -> None:
    name, expected = options.task, answer.maps[0]
    (listed,) = json.loads(write_maps(answer, JSON, options()))["data"]
    (coded,) = json.loads(write_maps(answer, JSON, options(encoding="base64")))["data"]
    raw = np.frombuffer(base64.b64decode(coded[name]["data"]), "<f4")
    arrays = [
        np.array(listed[name], np.float32),
        raw.reshape(coded[name]["shape"]),
        np.load(io.BytesIO(write_maps(answer, NPY, options()))),
        load(write_maps(answer, SAFETENSORS, options()))[name][0],
    ]
    for array in arrays:
        np.testing.assert_array_equal(array, expected)
    assert (listed["index"], listed["height"], listed["width"]) == (0, 4, 6)


@BOTH
def test_the_document_describes_what_is_sent(
    answer: EstimateMapsResponse, options: type[MapOptions]
) -> None:
    schema = DepthAnswer if options is DepthOptions else NormalsAnswer
    sent = json.loads(write_maps(answer, JSON, options()))
    assert schema.model_validate(sent).model_dump(exclude_none=True) == sent


def test_several_images_are_stacked_or_kept_apart() -> None:
    same = EstimateMapsResponse(model="m", maps=DEPTH.maps * 2)
    assert load(write_maps(same, SAFETENSORS, DepthOptions()))["depth"].shape == (2, 4, 6)
    other = EstimateMapsResponse(model="m", maps=(DEPTH.maps[0], DEPTH.maps[0].T))
    assert set(load(write_maps(other, SAFETENSORS, DepthOptions()))) == {"depth.0", "depth.1"}
    assert [d["index"] for d in json.loads(write_maps(other, JSON, DepthOptions()))["data"]] == [
        0,
        1,
    ]


def test_depth_is_millimetres_or_colours_as_a_png() -> None:
    expected = np.rint(DEPTH.maps[0] * 1000)
    for options in (DepthOptions(), DepthOptions(format="millimetres")):
        image = Image.open(io.BytesIO(write_maps(DEPTH, PNG, options)))
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert Image.open(io.BytesIO(write_maps(DEPTH, PNG, DepthOptions(format="colors")))).mode == "P"
    assert Image.open(io.BytesIO(write_maps(NORMALS, PNG, NormalsOptions()))).mode == "RGB"


@pytest.mark.parametrize("media", [PNG, NPY])
def test_a_file_of_one_map_takes_one_image(media: str) -> None:
    for options in (DepthOptions(), NormalsOptions()):
        check_map_media(media, options, 1)
        with pytest.raises(InvalidRequest) as caught:
            check_map_media(media, options, 2)
        assert caught.value.param == "images"
    check_map_media(JSON, DepthOptions(), 2)


@pytest.mark.parametrize("media", [JSON, NPY, SAFETENSORS])
def test_a_pngs_format_is_for_png(media: str) -> None:
    check_map_media(PNG, DepthOptions(format="colors"), 1)
    with pytest.raises(InvalidRequest, match="accept image/png") as caught:
        check_map_media(media, DepthOptions(format="colors"), 1)
    assert caught.value.param == "format"
