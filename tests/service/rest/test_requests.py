"""JSON bodies: defaults, the path of a wrong field, and the number of errors."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from service.errors import InvalidRequest, RequestTooLarge
from service.messages import EmbedTextsRequest, RequestLimits, SegmentClass
from service.rest.cloud import PredictBody
from service.rest.inputs import MAX_TENSOR_COMMAS, parse_json
from service.rest.open_inference import InferBody
from service.rest.openai import EmbeddingsBody
from service.rest.requests import (
    ClassifyImagesBody,
    EmbedImagesBody,
    EmbedTextsBody,
    Schema,
    SegmentImagesBody,
)

LIMITS = RequestLimits(
    max_images=32,
    max_texts=1024,
    max_classes=512,
    max_image_bytes=1000,
    max_image_pixels=1000,
    max_request_bytes=100_000,
    max_answer_bytes=1_000_000,
    max_work_memory_bytes=1_000_000,
)


def test_classes_are_names_or_names_with_prompts() -> None:
    raw = b'{"image": "", "classes": ["dog", {"name": "cat", "prompts": ["kitten"]}]}'
    assert parse_json(raw, SegmentImagesBody, LIMITS).to_message(()).classes == (
        SegmentClass(name="dog"),
        SegmentClass(name="cat", prompts=("kitten",)),
    )


def test_a_body_has_the_defaults_of_the_message() -> None:
    body = parse_json(b'{"texts": ["a"]}', EmbedTextsBody, LIMITS)
    assert body.to_message() == EmbedTextsRequest(texts=("a",))
    own = parse_json(b'{"texts": ["a"], "templates": []}', EmbedTextsBody, LIMITS)
    assert own.to_message().templates == (), "an empty list is refused later, not replaced"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"classes": ["a", {"name": "b", "promts": []}]}, "classes[1].promts", "unknown_field"),
        ({"classes": ["a", {"prompts": []}]}, "classes[1].name", "invalid_field"),
        ({"classes": ["a", 3]}, "classes[1]", "invalid_field"),
        ({"classes": "dog"}, "classes", "invalid_field"),
        ({"templates": "nice"}, "templates", "invalid_field"),
        ({"templates": ["{}", 1]}, "templates[1]", "invalid_field"),
        ({"resolution": "56"}, "resolution", "invalid_field"),
        ({"colour": 1}, "colour", "unknown_field"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(body: dict[str, object], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(json.dumps(body).encode(), SegmentImagesBody, LIMITS)
    assert (caught.value.param, caught.value.code) == (param, code)


def lists_in(node: Any) -> Iterator[dict[str, Any]]:
    """Every list of a pydantic core schema."""
    if isinstance(node, dict):
        if node.get("type") == "list":
            yield node
        for key, value in node.items():
            if key not in {"metadata", "serialization"}:
                yield from lists_in(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from lists_in(value)


def schemas(base: type[Schema] = Schema) -> Iterator[type[Schema]]:
    for schema in base.__subclasses__():
        yield schema
        yield from schemas(schema)


def test_every_list_of_a_request_stops_at_its_first_invalid_item() -> None:
    lists = [one for s in schemas() for one in lists_in(s.__pydantic_core_schema__)]
    # The items of `JsonValue` have no errors.
    found = [one for one in lists if one["items_schema"].get("schema_ref") is None]
    assert len(found) > 20
    assert all(one.get("fail_fast") for one in found), found


MANY: list[tuple[type[Schema], dict[str, Any]]] = [
    (EmbedTextsBody, {"texts": [0] * 9000}),
    (EmbedTextsBody, {"texts": ["a"], "templates": [0] * 9000}),
    (EmbedImagesBody, {"images": [{}] * 9000, "outputs": [[]] * 9000}),
    (SegmentImagesBody, {"classes": [{}] * 9000, "background_classes": [0] * 9000}),
    (ClassifyImagesBody, {"classes": [{"name": "a", "prompts": [0] * 9000}] * 9}),
    (EmbeddingsBody, {"input": ["a", *([0] * 9000)]}),
    (InferBody, {"inputs": [0] * 9000, "outputs": [0] * 9000}),
]


@pytest.mark.parametrize(("schema", "body"), MANY)
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
    body = {"texts": [text] * LIMITS.max_texts}
    assert len(parse_json(json.dumps(body).encode(), EmbedTextsBody, LIMITS).texts) == 1024
    item = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    mixed = {"input": [item] * (LIMITS.max_images + LIMITS.max_texts)}
    assert parse_json(json.dumps(mixed).encode(), EmbeddingsBody, LIMITS).input
