"""Checks of requests: the limits of each field, and the field that an error names."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from model.package import Manifest
from service.errors import InvalidRequest, RequestTooLarge, ServiceError
from service.messages import (
    ClassifyImagesRequest,
    EmbedTextsRequest,
    ModelInfo,
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
    max_answer_bytes=1_000_000,
    max_work_memory_bytes=1_000_000,
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


def test_outputs_are_those_of_the_model_without_duplicates(manifest: Manifest) -> None:
    info = ModelInfo(
        manifest=manifest, runtime="fake", precision="fp32", limits=LIMITS, tasks=("depth",)
    )
    assert check_outputs(["cls1", "depth", "cls1"], info) == ("cls1", "depth")
    for outputs, param in ((["cls1", "normals"], "outputs[1]"), (["text"], "outputs[0]")):
        with pytest.raises(InvalidRequest) as caught:
            check_outputs(outputs, info)
        assert (caught.value.code, caught.value.param) == ("unknown_output", param)
    with pytest.raises(InvalidRequest, match="empty"):
        check_outputs([], info)
    without = manifest.model_copy(update={"outputs": ["cls1"]})
    with pytest.raises(InvalidRequest, match="patches"):
        check_outputs(["patches"], replace(info, manifest=without))
    with pytest.raises(InvalidRequest, match="values"):
        check_features(None, without)


def classify(**fields: Any) -> None:
    check_choices(ClassifyImagesRequest(images=(b"",), classes=(DOG,), **fields))


def view(**fields: Any) -> None:
    check_view(VisualizeFeaturesRequest(images=(b"",), **fields))


def test_values_at_the_ends_of_their_ranges_are_valid(manifest: Manifest) -> None:
    assert [check_resolution(r, manifest) for r in (None, 14, 112)] == [28, 14, 112]
    odd = manifest.model_copy(update={"native_size": 70})
    assert [check_resolution(r, odd, is_map=True) for r in (None, 28, 112)] == [56, 28, 112]
    with pytest.raises(InvalidRequest, match=r"a multiple of 28 from 28 to 112 .*, not 42"):
        check_resolution(42, manifest, is_map=True)
    for threshold in (None, -1.0, 1.0):
        check_threshold(threshold)
    classify(temperature=1e-4, top_k=1)
    view(kind="groups", group_count=2, seed=0)
    view(kind="groups", group_count=20, seed=2**31 - 1)


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("check", "field", "values"),
    [
        (classify, "temperature", [0.0, -1.0, NAN, INFINITY]),
        (classify, "top_k", [0]),
        (partial(view, kind="groups"), "group_count", [1, 21]),
        (partial(view, kind="groups"), "seed", [-1, 2**31]),
        (partial(view, kind="colors"), "group_count", [3]),
        (partial(view, kind="component"), "seed", [1]),
    ],
)
def test_values_outside_their_ranges_name_their_field(
    check: Callable[..., None], field: str, values: list[float]
) -> None:
    for value in values:
        with pytest.raises(InvalidRequest) as caught:
            check(**{field: value})
        assert caught.value.param == field


def test_resolutions_and_thresholds_outside_their_ranges_are_refused(manifest: Manifest) -> None:
    for resolution in (0, -14, 13, 29, 126):
        with pytest.raises(InvalidRequest, match="multiple of 14 from 14 to 112"):
            check_resolution(resolution, manifest)
    for threshold in (1.01, -2.0, NAN):
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
def test_invalid_texts_and_templates_name_their_field(
    texts: list[str], templates: tuple[str, ...], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        text_groups(EmbedTextsRequest(texts=tuple(texts), templates=templates), LIMITS)
    assert caught.value.param == param


def test_in_a_partial_request_only_single_texts_may_be_invalid() -> None:
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
def test_invalid_classes_name_their_field(
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
