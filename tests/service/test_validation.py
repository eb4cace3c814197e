"""Checks of requests: the limits of each field, and the field that an error names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from model.manifest import PUBLISHED_ZERO_SHOT, Manifest, ZeroShot
from service.errors import InvalidRequest, RequestTooLarge, ServiceError
from service.messages import (
    ClassifyImagesRequest,
    EmbedTextsRequest,
    ModelInfo,
    SegmentClass,
    SegmentImagesRequest,
    VisualizeFeaturesRequest,
)
from service.validation import (
    check_bounds,
    check_features,
    check_images,
    check_outputs,
    check_resolution,
    check_view,
    class_groups,
    find_people,
    text_groups,
    with_mask_defaults,
)
from tests.service.conftest import LIMITS as FEW

LIMITS = replace(FEW, max_images=2, max_texts=3, max_classes=3)
NAN, INFINITY = float("nan"), float("inf")
DOG, CAT = SegmentClass(name="dog"), SegmentClass(name="cat", prompts=("a cat", "kitten"))


def classify(**fields: Any) -> None:
    check_bounds(ClassifyImagesRequest(images=(b"",), classes=(DOG,), **fields))


def view(**fields: Any) -> None:
    request = VisualizeFeaturesRequest(images=(b"",), **fields)
    check_bounds(request)
    check_view(request)


def groups_of(**fields: Any) -> None:
    view(kind="groups", **fields)


def masks(
    *names: str, has_head: bool = False, zero_shot: ZeroShot | None = None, **fields: Any
) -> SegmentImagesRequest:
    request = SegmentImagesRequest(images=(b"",), classes=tuple(named(*names)), **fields)
    check_bounds(request)
    return with_mask_defaults(request, zero_shot or ZeroShot(), has_head=has_head)


def texts(*given: str, templates: Any = "none") -> None:
    text_groups(EmbedTextsRequest(texts=given, templates=templates), LIMITS)


def classes(*given: SegmentClass, background: tuple[SegmentClass, ...] = ()) -> None:
    class_groups(given, background, "none", LIMITS)


def named(*names: str) -> list[SegmentClass]:
    return [SegmentClass(name=name) for name in names]


def test_values_at_the_ends_of_their_ranges_are_valid(manifest: Manifest) -> None:
    check_images([b"", b""], LIMITS)
    assert [check_resolution(r, manifest) for r in (None, 14, 112)] == [28, 14, 112]
    odd = manifest.model_copy(update={"native_size": 70})
    assert [check_resolution(r, odd, is_map=True) for r in (None, 28, 112)] == [56, 28, 112]
    for threshold in (None, -1.0, 1.0):
        masks("a", background_threshold=threshold)
    classify(temperature=1e-4, top_k=1)
    groups_of(group_count=2, seed=0)
    groups_of(group_count=20, seed=2**31 - 1)


@pytest.mark.parametrize(
    ("check", "param"),
    [
        (lambda: check_images([], LIMITS), "images"),
        (lambda: check_images([b""] * 3, LIMITS), "images"),
        *((lambda t=t: classify(temperature=t), "temperature") for t in (0.0, -1.0, NAN, INFINITY)),
        (lambda: classify(top_k=0), "top_k"),
        *((lambda n=n: groups_of(group_count=n), "group_count") for n in (1, 21)),
        *((lambda n=n: groups_of(seed=n), "seed") for n in (-1, 2**31)),
        (lambda: view(kind="colors", group_count=3), "group_count"),
        (lambda: view(kind="component", seed=1), "seed"),
        *(
            (lambda t=t: masks("a", background_threshold=t), "background_threshold")
            for t in (1.01, -2.0, NAN)
        ),
        *((lambda n=n: masks("a", min_area_share=n), "min_area_share") for n in (0, 1.1, NAN)),
        *((lambda n=n: masks("a", background_level=n), "background_level") for n in (-0.1, 2, NAN)),
        (lambda: masks("a", "b", background_level=0.5), "background_level"),
        (lambda: masks("a", background="none", background_level=0.5), "background_level"),
        (lambda: masks("a", background_threshold=0.1, background_level=1), "background_level"),
        (
            lambda: masks("a", background_threshold=0.1, background="auto"),
            "background_threshold",
        ),
        (lambda: masks("a", background="auto", has_head=True), "background"),
        (lambda: masks("a", quality="fine", has_head=True), "quality"),
        (lambda: masks("a", quality="fine", mode="slide"), "quality"),
        (lambda: masks("a", quality="fast", zero_shot=PUBLISHED_ZERO_SHOT), "quality"),
        (texts, "texts"),
        (lambda: texts("a", " \n"), "texts[1]"),
        (lambda: texts("a", "b" * 3000), "texts[1]"),
        (lambda: texts("a", templates=()), "templates"),
        (lambda: texts("a", templates=("{}", "no place")), "templates[1]"),
        (lambda: texts("a", templates=("{} {}",)), "templates[0]"),
        (lambda: classes(background=(DOG,)), "classes"),
        (lambda: classes(DOG, *named("")), "classes[1].name"),
        (lambda: classes(DOG, DOG), "classes[1].name"),
        (lambda: classes(DOG, background=(DOG,)), "background_classes[0].name"),
        (lambda: classes(SegmentClass(name="x", prompts=("a", " "))), "classes[0].prompts[1]"),
        (lambda: classes(*named(*"abcd")), "classes"),
        (lambda: classes(CAT, SegmentClass(name="x", prompts=("a", "b"))), "classes"),
    ],
)
def test_any_other_value_is_refused_and_names_its_field(
    check: Callable[[], None], param: str
) -> None:
    with pytest.raises((InvalidRequest, RequestTooLarge)) as caught:
        check()
    assert caught.value.param == param


def test_resolutions_are_multiples_within_the_range(manifest: Manifest) -> None:
    for resolution in (0, -14, 13, 29, 126):
        with pytest.raises(InvalidRequest, match="multiple of 14 from 14 to 112"):
            check_resolution(resolution, manifest)
    with pytest.raises(InvalidRequest, match=r"a multiple of 28 from 28 to 112 .*, not 42"):
        check_resolution(42, manifest, is_map=True)


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
    with pytest.raises(InvalidRequest, match="values"):
        check_features(None, manifest.model_copy(update={"outputs": ["cls1"]}))


def test_texts_and_classes_become_prompts() -> None:
    asked = EmbedTextsRequest(texts=("dog", "cat"), templates=("a {}", "the {}"))
    one, two = text_groups(asked, LIMITS)[0].values()
    assert (one.param, one.prompts) == ("texts[0]", ("a dog", "the dog"))
    assert (two.param, two.prompts) == ("texts[1]", ("a cat", "the cat"))
    groups, errors = text_groups(EmbedTextsRequest(texts=("dog",), templates="tcl"), LIMITS)
    assert (len(groups[0].prompts), errors) == (9, {})
    found = class_groups([DOG], [CAT], "none", LIMITS)
    assert [g.prompts for g in found] == [("dog",), ("a cat", "kitten")]
    (one,) = class_groups([replace(CAT, pool="max")], [], ("a {}", "the {}"), LIMITS)
    assert one.prompts == ("a a cat", "the a cat", "a kitten", "the kitten")
    assert (found[1].num_vectors, one.num_vectors) == (1, 2)
    assert [g.name for g in found] == ["dog", None]


def test_classes_that_mean_people_are_found_by_their_names() -> None:
    described = SegmentClass(name="woman", prompts=("a woman",))
    asked = [DOG, SegmentClass(name=" Person"), described]
    groups = class_groups(
        asked, [SegmentClass(name="children")], "none", replace(LIMITS, max_classes=9, max_texts=9)
    )
    assert find_people(groups) == [1, 3]
    assert find_people([]) == []


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


def test_one_class_finds_its_background_and_the_manifest_decides_the_rest() -> None:
    own = ZeroShot(quality="fine", background="auto", background_level=0.55)
    dog, more = ("dog",), ("dog", "cat")
    for found, expected in (
        (masks(*dog), ("whole", "published", "auto", 0.65)),
        (masks(*more), ("whole", "published", "none", 0.65)),
        (masks(*dog, background_threshold=0.1), ("whole", "published", "none", 0.65)),
        (masks(*dog, background_classes=(CAT,)), ("whole", "published", "none", 0.65)),
        (masks(*dog, has_head=True, zero_shot=own), ("whole", "fast", "none", 0.55)),
        (masks(*more, zero_shot=own), ("whole", "fine", "auto", 0.55)),
        (masks(*more, zero_shot=own, background_threshold=0), ("whole", "fine", "none", 0.55)),
        (masks(*more, zero_shot=own, background_classes=(CAT,)), ("whole", "fine", "none", 0.55)),
        (masks(*more, zero_shot=own, background="none"), ("whole", "fine", "none", 0.55)),
        (masks(*more, zero_shot=own, background_level=0), ("whole", "fine", "auto", 0)),
        (masks(*more, zero_shot=own, mode="slide"), ("slide", "published", "auto", 0.55)),
        (masks(*more, zero_shot=own, quality="fast"), ("whole", "fast", "auto", 0.55)),
        (masks(*dog, zero_shot=PUBLISHED_ZERO_SHOT), ("slide", "published", "auto", 0.65)),
    ):
        assert (found.mode, found.quality, found.background, found.background_level) == expected
