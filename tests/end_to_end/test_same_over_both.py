"""One table of requests, sent over REST and gRPC: equal arrays bit for bit, equivalent errors."""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

# A PNG header of 20,000 x 20,000 grey pixels in 69 bytes, without pixel data.
HUGE_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAATiAAAE4gCAAAAADGGxnlAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)


@dataclass(frozen=True)
class Good:
    """A valid request; images are given by seed and size."""

    name: str
    method: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Bad(Good):
    """An invalid request: status of both transports, error code and field."""

    rest: int
    rpc: str
    code: str | None
    param: str | None


IMAGES = [(1, (90, 60)), (2, (60, 90)), (3, (61, 60))]
ONE = IMAGES[:1]
CLASSES = ["dog", {"name": "cat", "prompts": ["a cat", "the small cat"]}, "grass"]
EVERYTHING = ["patches", "values", "cls1", "cls2"]

EVERY_OPTION = {
    "templates": "none",
    "features": "patches",
    "resolution": 84,
    "fit": "squash",
    "background_threshold": 0.1,
    "background_classes": ["sky", {"name": "sea"}],
    "include_scores": True,
}
SLIDE = {"images": IMAGES, "classes": CLASSES, "mode": "slide", "include_scores": True}
BACKGROUND = {"background_classes": ["sea"], "background_threshold": 0.05}
INSTANCES = {
    "images": IMAGES,
    "classes": CLASSES,
    "include_instances": True,
    "min_area_share": 0.01,
}
SPOT: Mapping[str, Any] = {"name": "spot", "examples": [{"point": {"x": 20, "y": 50.5}}]}
PART: Mapping[str, Any] = {
    "name": "part",
    "examples": [
        {"image": 1, "box": {"left": 5, "top": 4, "width": 30, "height": 40}},
        # All but the first column of 60 pixels.
        {"mask": {"height": 60, "width": 90, "counts": "l1lV5"}},
    ],
}
WHOLE: Mapping[str, Any] = {"name": "all", "examples": [{"image": 2}]}
SOME_SEA: Mapping[str, Any] = {"background_classes": [{**WHOLE, "name": "sea"}]}
OTHERWISE = {"features": "cls2", "templates": ["a {}"], "temperature": 0.5, "top_k": 2}
GROUPS = {"kind": "groups", "group_count": 3, "seed": 5}
FEW_BYTES = {"images": IMAGES, "outputs": EVERYTHING}
COMPONENT = {"kind": "component", "scope": "request", "size": "model"}
RAW = {"outputs": ["values"], "normalize": False, "resolution": 112, "model": "tiny"}
SOME_BROKEN = {"images": [b"hello", *ONE, "cut", *IMAGES], "partial": True}
SOME_BLANK = {"texts": ["", "dog", " ", "a" * 3000, "cat"], "partial": True}
GOOD = [
    Good("defaults", "embed_images", {"images": ONE}),
    Good("all outputs", "embed_images", {"images": IMAGES, "outputs": EVERYTHING}),
    Good("raw values", "embed_images", {"images": ONE, **RAW}),
    Good("aspect", "embed_images", {"images": IMAGES, "outputs": ["patches"], "fit": "aspect"}),
    Good("texts", "embed_texts", {"texts": ["a dog", "Sky", "the red house in the sea"]}),
    Good("tcl", "embed_texts", {"texts": ["dog", "cat"], "templates": "tcl"}),
    Good("own templates", "embed_texts", {"texts": ["dog"], "templates": ["a {}", "{}, red"]}),
    Good("long text", "embed_texts", {"texts": ["dog and cat " * 100], "normalize": False}),
    Good("prompts", "segment_images", {"images": IMAGES, "classes": CLASSES}),
    Good("every option", "segment_images", {"images": ONE, "classes": CLASSES, **EVERY_OPTION}),
    Good("instances", "segment_images", {**INSTANCES, **BACKGROUND}),
    Good("instances in windows", "segment_images", {**INSTANCES, "mode": "slide"}),
    Good("instances, small", "segment_images", {**INSTANCES, "size": "model"}),
    Good("patches of windows", "segment_images", {**SLIDE, "size": "patch"}),
    Good("examples", "segment_images", {"images": IMAGES, "classes": [SPOT, PART], **SOME_SEA}),
    Good("examples in windows", "segment_images", {**SLIDE, "classes": [PART, SPOT, WHOLE]}),
    Good("half precision", "embed_images", {**FEW_BYTES, "dtype": "float16"}),
    Good("int8", "embed_images", {**FEW_BYTES, "dtype": "int8"}),
    Good("texts in int8", "embed_texts", {"texts": ["dog", "cat"], "dtype": "int8"}),
    Good("slide", "segment_images", {**SLIDE, **BACKGROUND}),
    Good("slide, large", "segment_images", {**SLIDE, "resolution": 84, "fit": "squash"}),
    Good("classify", "classify_images", {"images": IMAGES, "classes": CLASSES}),
    Good("otherwise", "classify_images", {"images": ONE, "classes": CLASSES, **OTHERWISE}),
    Good("colours", "visualize_features", {"images": IMAGES, "features": "values"}),
    Good("component", "visualize_features", {"images": IMAGES, **COMPONENT}),
    Good("groups", "visualize_features", {"images": IMAGES, "scope": "request", **GROUPS}),
    Good("some images", "embed_images", {**SOME_BROKEN, "dtype": "int8"}),
    Good("some masks", "segment_images", {**SOME_BROKEN, "classes": ["dog", "sky"]}),
    Good("some windows", "segment_images", {**SLIDE, **SOME_BROKEN}),
    Good("some classes", "classify_images", {**SOME_BROKEN, "classes": ["dog", "sky"]}),
    Good("some features", "visualize_features", {**SOME_BROKEN, "scope": "request"}),
    Good("some texts", "embed_texts", SOME_BLANK),
    Good("some texts in int8", "embed_texts", {**SOME_BLANK, "dtype": "int8"}),
]
INVALID = "INVALID_ARGUMENT"
BASE: Mapping[str, Mapping[str, Any]] = {
    "embed_images": {"images": ONE},
    "embed_texts": {"texts": ["dog"]},
    "segment_images": {"images": ONE, "classes": ["dog"]},
    "classify_images": {"images": ONE, "classes": ["dog"]},
    "visualize_features": {"images": ONE},
    "estimate_depth": {"images": ONE},
    "estimate_normals": {"images": ONE},
}


def bad(name: str, method: str, code: str | None, param: str | None = None, **fields: Any) -> Bad:
    """A row: a valid request made invalid by these fields, answered by 422."""
    rest, rpc = fields.pop("status", (422, INVALID))
    return Bad(name, method, {**BASE[method], **fields}, rest=rest, rpc=rpc, code=code, param=param)


embed = partial(bad, method="embed_images")
texts = partial(bad, method="embed_texts")
segment = partial(bad, method="segment_images")
classify = partial(bad, method="classify_images")
visualize = partial(bad, method="visualize_features")
depth = partial(bad, method="estimate_depth")
normals = partial(bad, method="estimate_normals")

MANY = (413, INVALID)
NO_HEAD = (501, "UNIMPLEMENTED")
MISSPELT = {"name": "cat", "promts": ["kitten"]}
BLANK_PROMPT = {"name": "a", "prompts": ["b", " "]}
TOO_MANY_GROUPS: Mapping[str, Any] = {"kind": "groups", "group_count": 21}
ODD = "unheard-of"
NO_IMAGE: dict[str, Any] = {
    "code": "invalid_field",
    "classes": [{"name": "a", "examples": [{"image": 1}]}],
}
OUTSIDE: dict[str, Any] = {
    "code": "invalid_field",
    "classes": [{"name": "a", "examples": [{"point": {"x": 90, "y": 5}}]}],
}
OTHER_SIZE: dict[str, Any] = {
    "code": "invalid_field",
    "classes": [{"name": "a", "examples": [{"mask": {"height": 9, "width": 9, "counts": "a2"}}]}],
}
BAD = [
    embed("no image", code="invalid_image", param="images[1]", images=[*ONE, b"hello"]),
    embed("empty image", code="invalid_image", param="images[0]", images=[b""]),
    embed("truncated", code="invalid_image", param="images[1]", images=[*ONE, "cut"]),
    embed("huge", code="image_too_large", param="images[1]", images=[*ONE, HUGE_PNG]),
    embed("heavy", code="image_too_large", param="images[0]", images=[b"x" * 1_100_000]),
    embed("no images", code="empty_list", param="images", images=[]),
    embed("many", code="too_many_items", param="images", images=ONE * 33, status=MANY),
    embed("output", code="unknown_output", param="outputs[1]", outputs=["cls1", ODD]),
    embed("fit", code="invalid_field", param="fit", fit=ODD),
    embed("dtype", code="invalid_field", param="dtype", dtype=ODD),
    embed("resolution", code="invalid_field", param="resolution", resolution=57),
    embed("unknown model", code="model_not_found", model="other", status=(404, "NOT_FOUND")),
    embed("unknown field", code="unknown_field", unknown_field=True),
    embed("body", code=None, images=[b"x" * 900_000] * 3, status=(413, "RESOURCE_EXHAUSTED")),
    embed("partial, none", code="empty_list", param="images", images=[], partial=True),
    texts("no texts", code="empty_list", param="texts", texts=[]),
    texts("blank text", code="blank_text", param="texts[1]", texts=["dog", " \n"]),
    texts("many texts", code="too_many_items", param="texts", texts=["a"] * 2049, status=MANY),
    texts("template", code="invalid_field", param="templates[1]", templates=["{}", "a"]),
    texts("no templates", code="empty_list", param="templates", templates=[]),
    segment("huge, masks", code="image_too_large", param="images[0]", images=[HUGE_PNG]),
    segment("too long", code="image_too_large", param="images[0]", images=[(1, (3000, 4))]),
    segment("no classes", code="empty_list", param="classes", classes=[]),
    segment("blank class", code="blank_text", param="classes[1].name", classes=["dog", ""]),
    segment("twice", code="invalid_field", param="classes[1].name", classes=["dog", "dog"]),
    segment("prompt", code="blank_text", param="classes[0].prompts[1]", classes=[BLANK_PROMPT]),
    segment("misspelt", code="unknown_field", param="classes[1]", classes=["dog", MISSPELT]),
    segment("cosine", code="invalid_field", param="background_threshold", background_threshold=1.5),
    segment("size of a mask", code="invalid_field", param="size", size=ODD),
    segment("mixed", code="invalid_field", param="classes[1]", classes=[SPOT, "dog"]),
    segment("no such image", param="classes[0].examples[0].image", **NO_IMAGE),
    segment("outside", param="classes[0].examples[0].point", **OUTSIDE),
    segment("other size", param="classes[0].examples[0].mask", **OTHER_SIZE),
    classify("examples", code="invalid_field", param="classes[0]", classes=[SPOT]),
    segment("no area", code="invalid_field", param="min_area_share", min_area_share=0.0),
    segment(
        "slide, long",
        code="request_too_large",
        images=[(1, (30_000, 4))],
        mode="slide",
        status=MANY,
    ),
    segment("slide, broken", code="invalid_image", images=[b"hello"], mode="slide"),
    classify("temperature", code="invalid_field", param="temperature", temperature=0.0),
    classify("top_k", code="invalid_field", param="top_k", top_k=0),
    classify("no image to classify", code="invalid_image", images=[b"hello"]),
    visualize("groups", code="invalid_field", param="group_count", **TOO_MANY_GROUPS),
    visualize("seed of colours", code="invalid_field", param="seed", seed=1),
    depth("no depth", code="not_supported", param="model", status=NO_HEAD),
    normals("no normals", code="not_supported", param="model", status=NO_HEAD),
    depth("size", code="invalid_field", param="size", size=ODD),
    segment(
        "no own classes", code="not_supported", param="model", status=NO_HEAD, classes=["model"]
    ),
]


def with_images(fields: Mapping[str, Any], photo: Callable[..., bytes]) -> dict[str, Any]:
    """Replace seeds and sizes by images; `cut` is a truncated one."""
    made = dict(fields)
    if "images" in made:
        cut = photo(5, (400, 300))[:1500]
        made["images"] = [
            photo(*image) if isinstance(image, tuple) else cut if image == "cut" else image
            for image in made["images"]
        ]
    return made


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.name)
def test_arrays_are_bit_equal(service: "Service", photo: Callable[..., bytes], row: Good) -> None:
    fields = with_images(row.fields, photo)
    rest, rpc = service.over_rest(row.method, fields), service.over_grpc(row.method, fields)
    assert (rest.status, rpc.status) == ("200", "OK"), (rest.message, rpc.message)
    assert rest.errors == rpc.errors
    assert bool(rest.errors) == ("partial" in row.fields)
    assert rest.arrays.keys() == rpc.arrays.keys()
    assert rest.arrays
    for name, array in rest.arrays.items():
        assert array.dtype == rpc.arrays[name].dtype
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(array, rpc.arrays[name], err_msg=name)
    streamed = service.over_stream(row.method, fields)
    assert streamed.arrays.keys() == rpc.arrays.keys()
    for name, array in rpc.arrays.items():
        np.testing.assert_array_equal(array, streamed.arrays[name], err_msg=name)


@pytest.mark.parametrize("row", BAD, ids=lambda row: row.name)
def test_errors_are_equivalent_and_later_requests_succeed(
    service: "Service", photo: Callable[..., bytes], row: Bad
) -> None:
    fields = with_images(row.fields, photo)
    rest, rpc = service.over_rest(row.method, fields), service.over_grpc(row.method, fields)
    assert (rest.status, rpc.status) == (str(row.rest), row.rpc), (rest.message, rpc.message)
    if row.code is not None:
        assert (rest.code, rpc.code) == (row.code, row.code)
    if row.param is not None:
        # Protobuf has no name for an unknown field: REST's path may be one step longer.
        assert rpc.param == row.param
        assert (rest.param or "").startswith(row.param)
    streamed = service.over_stream(row.method, fields)
    numbered = re.compile(r"\d+")  # the envelope adds to the size of a message over the limit
    assert numbered.sub("", str(streamed)) == numbered.sub("", str(rpc))
    for ask in (service.over_rest, service.over_grpc):
        assert ask("embed_texts", {"texts": ["dog"]}).status in {"200", "OK"}


@pytest.mark.parametrize("transport", ["over_rest", "over_grpc"])
def test_a_batch_equals_its_items_one_by_one(
    service: "Service", photo: Callable[..., bytes], transport: str
) -> None:
    ask = getattr(service, transport)
    images = [photo(seed, (60 + 7 * seed, 70)) for seed in range(9)]
    fields = {"outputs": EVERYTHING, "normalize": True}
    together = ask("embed_images", {"images": images, **fields}).arrays
    for index, image in enumerate(images):
        alone = ask("embed_images", {"images": [image], **fields}).arrays
        for output in EVERYTHING:
            cosine = (together[f"{index}.{output}"] * alone[f"0.{output}"]).sum(axis=-1)
            assert cosine.min() > 0.9999
