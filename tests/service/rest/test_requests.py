"""Options and images from queries, forms, JSON and URLs; wrong and hostile bodies."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from service.errors import InvalidRequest, RequestTooLarge
from service.messages import EmbedTextsRequest, SegmentClass, SegmentImagesRequest
from service.rest.cloud import PredictBody
from service.rest.inputs import MAX_TENSOR_COMMAS, parse_form, parse_json, parse_pairs
from service.rest.open_inference import InferBody
from service.rest.openai import EmbeddingsBody
from service.rest.requests import (
    ClassifyImagesBody,
    EmbedImagesBody,
    EmbedTextsBody,
    SegmentImagesBody,
)
from service.schema import Schema
from service.server import Server
from tests.service.conftest import LIMITS as FEW
from tests.service.conftest import Encode, Serving
from tests.service.rest.conftest import client_of

URL = "https://images.example.org/a.png"
BOUNDARY = "multipart/form-data; boundary=xyz"
LIMITS = replace(FEW, max_images=32, max_texts=1024, max_classes=512)


def form(*parts: tuple[str, bytes]) -> bytes:
    lines = b"".join(
        b"--xyz\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + body + b"\r\n"
        for head, body in parts
    )
    return lines + b"--xyz--\r\n"


def parse(schema: type[Schema], **body: Any) -> Any:
    return parse_json(json.dumps(body).encode(), schema, LIMITS)


def test_a_query_may_have_every_option() -> None:
    pairs = [
        ("classes", "dog, grass"),
        ("classes", "sky"),
        ("background_classes", "wall"),
        ("background_threshold", "0.25"),
        ("background", "none"),
        ("background_level", "0.5"),
        ("quality", "fine"),
        ("templates", "tcl"),
        ("features", "patches"),
        ("resolution", "56"),
        ("include_scores", "true"),
    ]
    assert parse_pairs(SegmentImagesBody, pairs).to_message(()) == SegmentImagesRequest(
        images=(),
        classes=tuple(SegmentClass(name=n) for n in ("dog", "grass", "sky")),
        background_classes=(SegmentClass(name="wall"),),
        background_threshold=0.25,
        background="none",
        background_level=0.5,
        quality="fine",
        templates="tcl",
        features="patches",
        resolution=56,
        include_scores=True,
    )
    templates = [("templates", "a {}, small"), ("templates", "the {}")]
    message = parse_pairs(SegmentImagesBody, templates).to_message(())
    assert message.templates == ("a {}, small", "the {}")


def test_scores_are_of_no_class_of_the_best_or_of_all() -> None:
    for given, is_asked in ((False, (False, False)), (True, (True, False)), ("all", (False, True))):
        for body in (
            parse_pairs(SegmentImagesBody, [("include_scores", str(given).lower())]),
            parse(SegmentImagesBody, image="", include_scores=given),
        ):
            message = body.to_message(())
            assert (message.include_scores, message.include_all_scores) == is_asked
    expected = "include_scores: Give false, true or all."
    for wrong in ("most", "ALL", "", 2, None, ["all"], "true"):
        with pytest.raises(InvalidRequest, match=expected):
            parse(SegmentImagesBody, image="", include_scores=wrong)
    with pytest.raises(InvalidRequest, match=expected):
        parse_pairs(SegmentImagesBody, [("include_scores", "most")])


def test_a_body_has_the_defaults_of_the_message() -> None:
    assert parse(EmbedTextsBody, texts=["a"]).to_message() == EmbedTextsRequest(texts=("a",))
    own = parse(EmbedTextsBody, texts=["a"], templates=[])
    assert own.to_message().templates == (), "an empty list is refused later, not replaced"
    classes = ["dog", {"name": "cat", "prompts": ["kitten"]}]
    assert parse(SegmentImagesBody, image="", classes=classes).to_message(()).classes == (
        SegmentClass(name="dog"),
        SegmentClass(name="cat", prompts=("kitten",)),
    )


def test_a_form_has_fields_and_images_in_order() -> None:
    large = bytes(range(256)) * 8192
    raw = form(
        ('name="images"; filename="a"', b"one"),
        ('name="outputs"', b"cls1,cls2"),
        ('name="image"; filename="b"', large),
    )
    assert parse_form(raw, BOUNDARY, LIMITS) == ([("outputs", "cls1,cls2")], (b"one", large))
    with pytest.raises(RequestTooLarge, match="at most 1 "):
        parse_form(raw, BOUNDARY, replace(LIMITS, max_images=1))
    with pytest.raises(RequestTooLarge, match="at most 1000 fields"):
        parse_form(form(*[('name="a"', b"")] * 1001), BOUNDARY, LIMITS)


ONE = form(('name="image"; filename="a"', b"x"))


@pytest.mark.parametrize(
    ("raw", "content_type", "code"),
    [
        (b"--other\r\n\r\n", BOUNDARY, "invalid_body"),
        (ONE, "multipart/form-data", "invalid_body"),
        (ONE, "multipart/form-data; boundary=", "invalid_body"),
        (form(('name="outputs"', b"\xff")), BOUNDARY, "invalid_body"),
        (form(('name="photo"; filename="a"', b"x")), BOUNDARY, "unknown_field"),
    ],
)
def test_a_malformed_form_is_invalid(raw: bytes, content_type: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_form(raw, content_type, LIMITS)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (EmbedTextsBody, {"texts": [0] * 9000}),
        (EmbedTextsBody, {"texts": ["a"], "templates": [0] * 9000}),
        (EmbedImagesBody, {"images": [{}] * 9000, "outputs": [[]] * 9000}),
        (SegmentImagesBody, {"classes": [{}] * 9000, "background_classes": [0] * 9000}),
        (SegmentImagesBody, {"classes": [{"name": "a", "examples": [0] * 9000}]}),
        (ClassifyImagesBody, {"classes": [{"name": "a", "prompts": [0] * 9000}] * 9}),
        (EmbeddingsBody, {"input": ["a", *([0] * 9000)]}),
        (EmbeddingsBody, {"input": [[0], *(["a"] * 9000)]}),
        (InferBody, {"inputs": [0] * 9000, "outputs": [0] * 9000}),
    ],
)
def test_many_wrong_items_are_few_errors(schema: type[Schema], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate_json(json.dumps(body), strict=True)
    assert caught.value.error_count() <= 4


@pytest.mark.parametrize("name", ["k{}", "k{}\\", 'k{}"', '\\"\\{}'])
@pytest.mark.parametrize("schema", [EmbedTextsBody, InferBody, PredictBody])
def test_many_unknown_names_are_refused_before_parsing(schema: type[Schema], name: str) -> None:
    def body(count: int) -> bytes:
        return json.dumps({name.format(i): 0 for i in range(count)}).encode()

    with pytest.raises(RequestTooLarge):
        parse_json(body(20_000), schema, LIMITS, max_commas=MAX_TENSOR_COMMAS)
    with pytest.raises(InvalidRequest):
        parse_json(body(100), schema, LIMITS)


def test_a_request_of_all_items_with_long_texts_is_parsed() -> None:
    text = 'a "quoted" text, with commas, ' * 20
    assert len(parse(EmbedTextsBody, texts=[text] * LIMITS.max_texts).texts) == 1024
    item = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert parse(EmbeddingsBody, input=[item] * (LIMITS.max_images + LIMITS.max_texts)).input


async def post(server: Server, body: dict[str, Any]) -> tuple[int, Any]:
    async with client_of(server) as client:
        answer = await client.post("/v1/images:embed", json=body)
        return answer.status_code, answer.json()


async def test_images_by_url_and_in_the_body_keep_their_places(
    serving: Serving, encode_image: Encode, fetched: dict[str, bytes]
) -> None:
    images = [encode_image(seed=seed) for seed in range(3)]
    fetched |= {URL: images[0], URL + "?2": images[2]}
    texts = [base64.b64encode(image).decode() for image in images]
    texts[2] = "data:image/png;base64," + texts[2]
    async with serving(url_hosts="images.example.org") as server:
        _, sent = await post(server, {"images": texts})
        _, mixed = await post(server, {"images": [URL, texts[1], URL + "?2"]})
        failed = await post(server, {"images": [texts[0], URL + "?3"]})
        body = {"images": ["%", texts[1], URL + "?3"], "partial": True}
        _, partial = await post(server, body)
        # The limit counts before any image is fetched.
        many = await post(server, {"images": [URL] * 33})
        assert server.admission.num_body_bytes == 0
    assert mixed["data"] == sent["data"]
    for (status, answer), expected in (
        (failed, (422, "url_fetch_failed", "images[1]")),
        (many, (413, "too_many_items", "images")),
    ):
        assert (status, answer["error"]["code"], answer["error"]["param"]) == expected
    assert partial["data"] == [sent["data"][1]]
    errors = [(one["index"], one["error"]["code"]) for one in partial["errors"]]
    assert errors == [(0, "invalid_base64"), (2, "url_fetch_failed")]


async def test_fetched_bytes_count_towards_the_memory_for_bodies(
    serving: Serving, fetched: dict[str, bytes]
) -> None:
    fetched[URL] = bytes(5000)
    limits = {f"max_{name}_bytes": 5000 for name in ("image", "request", "body_memory")}
    async with serving(url_hosts="images.example.org", **limits) as server:
        status, answer = await post(server, {"image": URL})
        assert server.admission.num_body_bytes == 0
    assert (status, answer["error"]["code"]) == (429, "body_memory_full")
