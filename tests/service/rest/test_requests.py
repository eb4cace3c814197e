"""JSON bodies: defaults, and the path of a wrong field."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from service.messages import EmbedTextsRequest, SegmentClass
from service.rest.errors import invalid_fields
from service.rest.requests import EmbedTextsBody, SegmentImagesBody


def refused(schema: Any, **body: object) -> tuple[str | None, str]:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate_json(json.dumps(body), strict=True)
    error = invalid_fields(caught.value)
    return error.param, error.code


def test_classes_are_names_or_names_with_prompts() -> None:
    body = SegmentImagesBody.model_validate_json(
        '{"image": "", "classes": ["dog", {"name": "cat", "prompts": ["kitten"]}]}', strict=True
    )
    assert body.to_message(()).classes == (
        SegmentClass(name="dog"),
        SegmentClass(name="cat", prompts=("kitten",)),
    )


def test_a_body_has_the_defaults_of_the_message() -> None:
    body = EmbedTextsBody.model_validate_json('{"texts": ["a"]}', strict=True)
    assert body.to_message() == EmbedTextsRequest(texts=("a",))
    own = EmbedTextsBody.model_validate_json('{"texts": ["a"], "templates": []}', strict=True)
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
        ({"include_scores": 1}, "include_scores", "invalid_field"),
        ({"colour": 1}, "colour", "unknown_field"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(body: dict[str, object], param: str, code: str) -> None:
    assert refused(SegmentImagesBody, **body) == (param, code)
