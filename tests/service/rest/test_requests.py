"""JSON bodies: defaults, and the path of a wrong field."""

import json

import pytest

from service.errors import InvalidRequest
from service.messages import EmbedTextsRequest, SegmentClass
from service.rest.inputs import parse_json
from service.rest.requests import EmbedTextsBody, SegmentImagesBody


def test_classes_are_names_or_names_with_prompts() -> None:
    raw = b'{"image": "", "classes": ["dog", {"name": "cat", "prompts": ["kitten"]}]}'
    assert parse_json(raw, SegmentImagesBody).to_message(()).classes == (
        SegmentClass(name="dog"),
        SegmentClass(name="cat", prompts=("kitten",)),
    )


def test_a_body_has_the_defaults_of_the_message() -> None:
    body = parse_json(b'{"texts": ["a"]}', EmbedTextsBody)
    assert body.to_message() == EmbedTextsRequest(texts=("a",))
    own = parse_json(b'{"texts": ["a"], "templates": []}', EmbedTextsBody)
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
        parse_json(json.dumps(body).encode(), SegmentImagesBody)
    assert (caught.value.param, caught.value.code) == (param, code)
