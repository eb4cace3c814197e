"""What both transports refuse alike, with the field and the item's index."""

from dataclasses import replace
from typing import Any

import pytest

from model.package import Manifest
from service.errors import InvalidRequest, RequestTooLarge, ServiceError
from service.messages import (
    ClassifyImagesRequest,
    EmbedTextsRequest,
    RequestLimits,
    SegmentClass,
    VisualizeFeaturesRequest,
)
from service.validation import (
    check_choices,
    check_features,
    check_images,
    check_outputs,
    check_resolution,
    check_threshold,
    check_view,
    class_groups,
    text_groups,
)

LIMITS = RequestLimits(
    max_images=2,
    max_texts=3,
    max_classes=3,
    max_image_bytes=1,
    max_image_pixels=1,
    max_request_bytes=1,
)
DOG, CAT = SegmentClass(name="dog"), SegmentClass(name="cat", prompts=("a cat", "kitten"))


def test_lists_have_a_first_and_a_last_allowed_length() -> None:
    check_images([b"", b""], LIMITS)
    with pytest.raises(InvalidRequest) as empty:
        check_images([], LIMITS)
    assert (empty.value.code, empty.value.param) == ("empty_list", "images")
    with pytest.raises(RequestTooLarge) as long:
        check_images([b""] * 3, LIMITS)
    assert (long.value.code, long.value.param) == ("too_many_items", "images")


def test_outputs_are_known_and_each_counts_once(manifest: Manifest) -> None:
    assert check_outputs(["cls1", "patches", "cls1"], manifest) == ("cls1", "patches")
    for outputs, param in ((["cls1", "depth"], "outputs[1]"), (["text"], "outputs[0]")):
        with pytest.raises(InvalidRequest) as caught:
            check_outputs(outputs, manifest)
        assert (caught.value.code, caught.value.param) == ("unknown_output", param)
    with pytest.raises(InvalidRequest, match="empty"):
        check_outputs([], manifest)


def test_an_output_that_this_model_lacks_is_unknown(manifest: Manifest) -> None:
    without = manifest.model_copy(update={"outputs": ["cls1"]})
    with pytest.raises(InvalidRequest, match="patches"):
        check_outputs(["patches"], without)
    with pytest.raises(InvalidRequest, match="values"):
        check_features(None, without)


def test_resolutions_are_the_manifests(manifest: Manifest) -> None:
    assert check_resolution(None, manifest) == 28
    assert check_resolution(112, manifest) == 112
    for resolution in (0, -14, 13, 29, 126):
        with pytest.raises(InvalidRequest, match="multiple of 14 from 14 to 112"):
            check_resolution(resolution, manifest)


def test_a_threshold_is_from_minus_one_to_one() -> None:
    check_threshold(None)
    check_threshold(-1.0)
    for threshold in (1.01, -2.0, float("nan")):
        with pytest.raises(InvalidRequest, match="from -1 to 1"):
            check_threshold(threshold)


def test_texts_are_filled_into_templates() -> None:
    asked = EmbedTextsRequest(texts=("dog", "cat"), templates=("a {}", "the {}"))
    one, two = text_groups(asked, LIMITS)[0].values()
    assert (one.param, one.prompts) == ("texts[0]", ("a dog", "the dog"))
    assert (two.param, two.prompts) == ("texts[1]", ("a cat", "the cat"))
    groups, errors = text_groups(EmbedTextsRequest(texts=("dog",), templates="tcl"), LIMITS)
    assert len(groups[0].prompts) == 9
    assert not errors


@pytest.mark.parametrize(
    ("texts", "templates", "param"),
    [
        ([], "none", "texts"),
        (["a", " \n"], "none", "texts[1]"),
        (["a", "b" * 3000], "none", "texts[1]"),
        (["a"], (), "templates"),
        (["a"], ("{}", "no place"), "templates[1]"),
        (["a"], ("{} {}",), "templates[0]"),
    ],
)
def test_texts_that_cannot_be_used(
    texts: list[str], templates: tuple[str, ...], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        text_groups(EmbedTextsRequest(texts=tuple(texts), templates=templates), LIMITS)
    assert caught.value.param == param


def test_of_a_partial_request_single_texts_may_be_wrong_and_nothing_else() -> None:
    asked = EmbedTextsRequest(texts=("a", " ", "b" * 3000), partial=True)
    groups, errors = text_groups(asked, LIMITS)
    assert {index: group.prompts for index, group in groups.items()} == {0: ("a",)}
    assert {i: (e.code, e.param) for i, e in errors.items()} == {
        1: ("blank_text", "texts[1]"),
        2: ("text_too_long", "texts[2]"),
    }
    for wrong in ({"texts": ()}, {"texts": ("a",) * 4}, {"templates": ("no place",)}):
        with pytest.raises(ServiceError):
            text_groups(replace(asked, **wrong), LIMITS)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"kind": "colors", "group_count": 3}, "group_count"),
        ({"kind": "component", "seed": 1}, "seed"),
        ({"kind": "groups", "group_count": 1}, "group_count"),
        ({"kind": "groups", "group_count": 21}, "group_count"),
        ({"kind": "groups", "seed": -1}, "seed"),
        ({"kind": "groups", "seed": 2**31}, "seed"),
    ],
)
def test_groups_have_a_range_and_other_views_have_none(change: dict[str, Any], param: str) -> None:
    check_view(VisualizeFeaturesRequest(images=(b"",), kind="groups", group_count=20, seed=0))
    with pytest.raises(InvalidRequest) as caught:
        check_view(VisualizeFeaturesRequest(images=(b"",), **change))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_a_temperature_is_above_zero_and_one_class_is_the_least(
    change: dict[str, Any], param: str
) -> None:
    check_choices(ClassifyImagesRequest(images=(b"",), classes=(DOG,), temperature=0.01, top_k=1))
    with pytest.raises(InvalidRequest) as caught:
        check_choices(ClassifyImagesRequest(images=(b"",), classes=(DOG,), **change))
    assert caught.value.param == param


def test_classes_come_before_background_classes() -> None:
    groups = class_groups([DOG], [CAT], "none", LIMITS)
    assert [g.prompts for g in groups] == [("dog",), ("a cat", "kitten")]


@pytest.mark.parametrize(
    ("classes", "background", "param"),
    [
        ([], [DOG], "classes"),
        ([DOG, SegmentClass(name="")], [], "classes[1].name"),
        ([DOG, DOG], [], "classes[1].name"),
        ([DOG], [DOG], "background_classes[0].name"),
        ([SegmentClass(name="x", prompts=("a", " "))], [], "classes[0].prompts[1]"),
    ],
)
def test_classes_that_cannot_be_used(
    classes: list[SegmentClass], background: list[SegmentClass], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        class_groups(classes, background, "none", LIMITS)
    assert caught.value.param == param


def test_too_many_classes_or_prompts_are_too_large() -> None:
    with pytest.raises(RequestTooLarge):
        class_groups([SegmentClass(name=n) for n in "abcd"], [], "none", LIMITS)
    with pytest.raises(RequestTooLarge, match="prompt"):
        class_groups([CAT, SegmentClass(name="x", prompts=("a", "b"))], [], "none", LIMITS)
