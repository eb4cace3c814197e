"""Options and images arrive the same however they are sent."""

import base64

import pytest

from service.errors import InvalidRequest
from service.messages import EmbedImagesRequest, SegmentClass, SegmentImagesRequest
from service.rest.inputs import decode_images, image_texts, parse_form, parse_pairs
from service.rest.requests import EmbedImagesOptions, ImageBody, SegmentImagesOptions

BOUNDARY = "multipart/form-data; boundary=xyz"


def form(*parts: tuple[str, bytes]) -> bytes:
    lines = b"".join(
        b"--xyz\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + body + b"\r\n"
        for head, body in parts
    )
    return lines + b"--xyz--\r\n"


def test_nothing_said_means_the_defaults_of_the_messages() -> None:
    assert parse_pairs(EmbedImagesOptions, []).to_message((b"x",)) == EmbedImagesRequest(
        images=(b"x",)
    )
    asked = parse_pairs(SegmentImagesOptions, [("classes", "dog")]).to_message((b"x",))
    dog = (SegmentClass(name="dog"),)
    assert asked == SegmentImagesRequest(images=(b"x",), classes=dog)


def test_a_query_says_everything() -> None:
    pairs = [
        ("classes", "dog, grass"),
        ("classes", "sky"),
        ("background_classes", "wall"),
        ("background_threshold", "0.25"),
        ("templates", "tcl"),
        ("features", "patches"),
        ("fit", "squash"),
        ("resolution", "56"),
        ("include_scores", "true"),
        ("model", "m"),
    ]
    assert parse_pairs(SegmentImagesOptions, pairs).to_message(()) == SegmentImagesRequest(
        images=(),
        classes=tuple(SegmentClass(name=n) for n in ("dog", "grass", "sky")),
        background_classes=(SegmentClass(name="wall"),),
        background_threshold=0.25,
        templates="tcl",
        features="patches",
        fit="squash",
        resolution=56,
        include_scores=True,
        model="m",
    )


def test_own_templates_may_hold_commas() -> None:
    pairs = [("templates", "a {}, small"), ("templates", "the {}")]
    message = parse_pairs(SegmentImagesOptions, pairs).to_message(())
    assert message.templates == ("a {}, small", "the {}")


@pytest.mark.parametrize(
    ("pairs", "param", "code"),
    [
        ([("colour", "red")], "colour", "unknown_field"),
        ([("fit", "crop")], "fit", "invalid_field"),
        ([("resolution", "big")], "resolution", "invalid_field"),
        ([("resolution", "28"), ("resolution", "56")], "resolution", "invalid_field"),
        ([("image", "abc")], "image", "unknown_field"),
    ],
)
def test_a_query_that_cannot_be(pairs: list[tuple[str, str]], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_pairs(EmbedImagesOptions, pairs)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_a_form_brings_fields_and_images_in_order() -> None:
    large = bytes(range(256)) * 8192
    raw = form(
        ('name="images"; filename="a"', b"one"),
        ('name="outputs"', b"cls1,cls2"),
        ('name="image"; filename="b"', large),
    )
    assert parse_form(raw, BOUNDARY, 2) == ([("outputs", "cls1,cls2")], (b"one", large))


@pytest.mark.parametrize(
    ("raw", "content_type"),
    [
        (b"--other\r\n\r\n", BOUNDARY),
        (form(('name="image"; filename="a"', b"x")), "multipart/form-data"),
        (form(('name="image"; filename="a"', b"x")), "multipart/form-data; boundary="),
        (form(('name="outputs"', b"\xff")), BOUNDARY),
    ],
)
def test_a_malformed_form_is_the_callers_error(raw: bytes, content_type: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_form(raw, content_type, 2)
    assert caught.value.code == "invalid_body"


def test_a_file_in_another_field_is_an_error() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_form(form(('name="photo"; filename="a"', b"x")), BOUNDARY, 2)
    assert caught.value.param == "photo"


def test_base64_and_data_uris_are_read() -> None:
    text = base64.b64encode(b"image").decode()
    assert decode_images(image_texts(ImageBody(image=text)), {}) == (b"image",)
    uri = f"data:image/png;base64,{text}"
    assert decode_images([uri, text], {}) == (b"image", b"image")
    assert image_texts(ImageBody(images=[])) == []


@pytest.mark.parametrize("text", ["%%%", "abc", "data:image/png,abc", "https://x/y.png"])
def test_what_is_no_base64_names_its_index(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_images(["", text], {})
    assert (caught.value.code, caught.value.param) == ("invalid_base64", "images[1]")


@pytest.mark.parametrize("body", [ImageBody(), ImageBody(image="", images=[])])
def test_either_one_image_or_several(body: ImageBody) -> None:
    with pytest.raises(InvalidRequest, match="either"):
        image_texts(body)
