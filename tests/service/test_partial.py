"""Answers beside errors: what is wrong with single items leaves the others theirs."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from service.call import Call
from service.data_plane import DataPlane
from service.errors import InternalError, InvalidRequest, RequestTooLarge, ServiceError
from service.messages import (
    ClassifyImagesRequest,
    EmbedImagesRequest,
    EmbedTextsRequest,
    EstimateMapsRequest,
    SegmentClass,
    SegmentImagesRequest,
    VisualizeFeaturesRequest,
)

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

MakePlane = Callable[..., DataPlane]
Encode = Callable[..., bytes]
CLASSES = (SegmentClass(name="dog"), SegmentClass(name="sky"))


def call(seconds: float = 20.0) -> Call:
    return Call(request_id="test", deadline=time.monotonic() + seconds)


def broken(encode_image: Encode) -> tuple[Any, ...]:
    """Unreadable by header, good, truncated, refused before it came, good."""
    given = InvalidRequest("images[3] is no base64.", code="invalid_base64", param="images[3]")
    cut = encode_image("JPEG", size=(200, 150))[:900]
    return (b"hello", encode_image(seed=1), cut, given, encode_image(seed=2))


def array_of(item: Any) -> Any:
    """What an answer says of one image."""
    if isinstance(item, dict):
        return item["cls1"]
    return getattr(item, "labels_HW", getattr(item, "cosines_K", item))


ASKED = [
    ("embed_images", EmbedImagesRequest, {}, "embeddings"),
    ("segment_images", SegmentImagesRequest, {"classes": CLASSES}, "segmentations"),
    (
        "segment_images",
        SegmentImagesRequest,
        {"classes": CLASSES, "mode": "slide"},
        "segmentations",
    ),
    ("classify_images", ClassifyImagesRequest, {"classes": CLASSES}, "classifications"),
    ("visualize_features", VisualizeFeaturesRequest, {"scope": "request"}, "maps"),
    ("estimate_maps", EstimateMapsRequest, {"task": "depth"}, "maps"),
]
EVERY = pytest.mark.parametrize(("method", "request_type", "fields", "found"), ASKED)


@EVERY
async def test_images_that_can_be_read_are_answered_as_if_they_were_alone(
    make_plane: MakePlane,
    encode_image: Encode,
    runtime: "FakeRuntime",
    method: str,
    request_type: Any,
    fields: dict[str, Any],
    found: str,
) -> None:
    ask = getattr(make_plane(), method)
    images = broken(encode_image)
    answer = await ask(request_type(images=images, partial=True, **fields), call())
    assert {i: (e.code, e.param) for i, e in answer.errors.items()} == {
        0: ("invalid_image", "images[0]"),
        2: ("invalid_image", "images[2]"),
        3: ("invalid_base64", "images[3]"),
    }
    good = await ask(request_type(images=(images[1], images[4]), **fields), call())
    assert len(getattr(answer, found)) == len(getattr(good, found)) == 2
    for mine, other in zip(getattr(answer, found), getattr(good, found), strict=True):
        np.testing.assert_array_equal(array_of(mine), array_of(other))


@EVERY
async def test_nothing_readable_is_an_answer_too_and_costs_no_model(
    make_plane: MakePlane,
    runtime: "FakeRuntime",
    method: str,
    request_type: Any,
    fields: dict[str, Any],
    found: str,
) -> None:
    plane = make_plane()
    request = request_type(images=(b"x", b"y"), partial=True, **fields)
    answer = await getattr(plane, method)(request, call())
    assert set(answer.errors) == {0, 1}
    assert len(getattr(answer, found)) == 0
    assert (runtime.num_images, runtime.num_maps) == (0, 0)
    assert plane.gate.wait_idle(0)


async def test_without_partial_the_first_error_is_the_answer(
    make_plane: MakePlane, encode_image: Encode
) -> None:
    with pytest.raises(ServiceError) as caught:
        await make_plane().embed_images(EmbedImagesRequest(images=broken(encode_image)), call())
    assert caught.value.param == "images[0]"


async def test_what_is_wrong_with_the_whole_request_fails_all_of_it(
    make_plane: MakePlane, encode_image: Encode, runtime: "FakeRuntime"
) -> None:
    plane, image = make_plane(), encode_image()
    for change in ({"images": ()}, {"outputs": ("x",)}, {"resolution": 15}):
        asked: dict[str, Any] = {"images": (image, b"x"), "partial": True} | change
        with pytest.raises(InvalidRequest):
            await plane.embed_images(EmbedImagesRequest(**asked), call())
    heavy = EmbedImagesRequest(images=(image,) * 20, resolution=56, partial=True)
    with pytest.raises(RequestTooLarge):
        await plane.embed_images(heavy, call())
    runtime.fault = "raise"
    with pytest.raises(InternalError):
        await plane.embed_images(EmbedImagesRequest(images=(b"x", image), partial=True), call())


async def test_a_broken_image_takes_no_room_in_the_queue(
    make_plane: MakePlane, encode_image: Encode
) -> None:
    # 17 images of 16 patches do not fit into 256, and 16 do.
    images = (*(encode_image(),) * 16, b"broken")
    request = EmbedImagesRequest(images=images[1:], resolution=56, partial=True)
    assert len((await make_plane().embed_images(request, call())).embeddings) == 15


async def test_texts_that_cannot_be_used_have_errors_and_the_others_rows(
    make_plane: MakePlane,
) -> None:
    plane = make_plane()
    nothing = "\u200b"  # which the tokenizer does not know
    texts = ("dog", " ", nothing, "a" * 3000, "sky", nothing)
    for vector_type in ("float32", "int8"):
        asked = EmbedTextsRequest(texts=texts, partial=True, vector_type=vector_type)
        answer = await plane.embed_texts(asked, call())
        assert {i: e.param for i, e in answer.errors.items()} == {
            i: f"texts[{i}]" for i in (1, 2, 3, 5)
        }
        good = EmbedTextsRequest(texts=("dog", "sky"), vector_type=vector_type)
        alone = await plane.embed_texts(good, call())
        np.testing.assert_array_equal(answer.embeddings_TD, alone.embeddings_TD)
        rows_TD, scales_T = answer.in_places()
        np.testing.assert_array_equal(rows_TD[[0, 4]], alone.embeddings_TD)
        assert not rows_TD[[1, 2, 3, 5]].any()
        assert (scales_T is None) == (vector_type == "float32")
    none = await plane.embed_texts(EmbedTextsRequest(texts=(" ",), partial=True), call())
    assert none.embeddings_TD.shape == (0, 8)


async def test_an_error_leads_to_no_frame_and_so_to_no_image(
    make_plane: MakePlane, encode_image: Encode
) -> None:
    plane = make_plane()
    request = EmbedImagesRequest(images=broken(encode_image), partial=True)
    embedded = await plane.embed_images(request, call())
    texts = await plane.embed_texts(EmbedTextsRequest(texts=("a", " "), partial=True), call())
    for error in (*embedded.errors.values(), *texts.errors.values()):
        assert error.__traceback__ is None
        assert error.__cause__ is error.__context__ is None
