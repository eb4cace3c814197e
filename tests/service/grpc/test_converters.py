"""Protobuf converts to messages of the data plane and back; unknown fields are refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from model.graphs import DenseTask
from service.errors import InvalidRequest
from service.grpc import converters
from service.grpc.converters import enum_names, refuse_unknown_fields, write_tensor
from service.grpc.generated import (
    classify_pb2,
    dense_pb2,
    embed_pb2,
    features_pb2,
    image_pb2,
    open_inference_pb2,
    segment_pb2,
    tensor_pb2,
    text_pb2,
)
from service.messages import (
    ClassExample,
    ClassifyImagesRequest,
    EmbedImagesRequest,
    EmbedTextsRequest,
    EstimateMapsRequest,
    ImageOutput,
    RunLengths,
    SegmentClass,
    SegmentImagesRequest,
    VisualizeFeaturesRequest,
)

EMBED, TEXTS = embed_pb2.EmbedImagesRequest, embed_pb2.EmbedTextsRequest
SEGMENT, CLASSIFY = segment_pb2.SegmentImagesRequest, classify_pb2.ClassifyImagesRequest
VIEW = features_pb2.VisualizeFeaturesRequest
DEPTH, NORMALS = dense_pb2.EstimateDepthRequest, dense_pb2.EstimateNormalsRequest
NONE: dict[str, Any] = {"images": ()}
CONVERSIONS: list[tuple[Callable[[Any], Any], Any, Any]] = [
    (converters.to_embed_images, EMBED, EmbedImagesRequest(**NONE)),
    (converters.to_embed_texts, TEXTS, EmbedTextsRequest(texts=())),
    (
        converters.to_segment_images,
        SEGMENT,
        SegmentImagesRequest(**NONE, classes=(), include_class_scores=True),
    ),
    (converters.to_classify_images, CLASSIFY, ClassifyImagesRequest(**NONE, classes=())),
    (converters.to_visualize_features, VIEW, VisualizeFeaturesRequest(**NONE)),
    (converters.to_estimate_depth, DEPTH, EstimateMapsRequest(**NONE, task="depth")),
    (converters.to_estimate_normals, NORMALS, EstimateMapsRequest(**NONE, task="normals")),
]
EACH = pytest.mark.parametrize(("convert", "kind", "empty"), CONVERSIONS)
DOG = (
    [
        segment_pb2.SegmentClass(name="dog", prompts=["a"], pool=segment_pb2.PROMPT_POOL_MAX),
        segment_pb2.SegmentClass(
            name="cat",
            examples=[
                segment_pb2.ClassExample(),
                segment_pb2.ClassExample(image=1, point=segment_pb2.Point(x=1, y=2)),
                segment_pb2.ClassExample(box=segment_pb2.Box(left=1, top=2, width=3, height=4)),
                segment_pb2.ClassExample(
                    mask=segment_pb2.RunLengths(height=2, width=3, counts="6")
                ),
            ],
        ),
    ],
    (
        SegmentClass(name="dog", prompts=("a",), pool="max"),
        SegmentClass(
            name="cat",
            examples=(
                ClassExample(),
                ClassExample(image=1, point=(1, 2)),
                ClassExample(box=(1, 2, 3, 4)),
                ClassExample(mask=RunLengths(size_hw=(2, 3), counts="6")),
            ),
        ),
    ),
)
TEMPLATES = text_pb2.Templates(custom=text_pb2.CustomTemplates(templates=["the {}"]))
# A value of each field on the wire and in the message. Zero and false are values, not absences.
FIELDS: dict[str, tuple[Any, Any]] = {
    "images": ([image_pb2.Image(encoded=b"x")], (b"x",)),
    "texts": (["a"], ("a",)),
    "model": ("m", "m"),
    "classes": DOG,
    "background_classes": DOG,
    "templates": (TEMPLATES, ("the {}",)),
    "normalize": (False, False),
    **dict.fromkeys(("include_scores", "include_all_scores"), (True, True)),
    **dict.fromkeys(("include_instances", "partial"), (True, True)),
    **dict.fromkeys(("resolution", "top_k", "group_count", "seed"), (0, 0)),
    **dict.fromkeys(("background_threshold", "background_level"), (0.0, 0.0)),
    **dict.fromkeys(("temperature", "min_area_share"), (0.0, 0.0)),
}


def examples(field: Any) -> list[tuple[Any, Any]]:
    """The value in `FIELDS`, or every value of an enum with its name."""
    if field.enum_type is None:
        return [FIELDS[field.name]]
    unset, *values = field.enum_type.values
    prefix = unset.name.removesuffix("UNSPECIFIED")
    names = [(value.number, value.name.removeprefix(prefix).lower()) for value in values]
    return [([n], (name,)) for n, name in names] if field.name == "outputs" else names


@EACH
def test_each_field_becomes_the_field_of_the_same_name_or_has_its_default(
    convert: Callable[[Any], Any], kind: Any, empty: Any
) -> None:
    assert convert(kind()) == empty
    for field in kind.DESCRIPTOR.fields:
        for given, expected in examples(field):
            found = convert(kind(**{field.name: given}))
            assert found == replace(empty, **{field.name: expected}), field.name


@EACH
def test_an_unknown_value_of_an_enum_is_refused(convert: Any, kind: Any, empty: Any) -> None:
    for field in kind.DESCRIPTOR.fields:
        if field.enum_type is not None and field.name != "outputs":
            with pytest.raises(InvalidRequest) as caught:
                convert(kind(**{field.name: 9}))
            assert caught.value.param == {"vector_type": "dtype"}.get(field.name, field.name)


def values(hint: Any) -> set[str]:
    """The values of a literal type, also within others."""
    found = [values(one) if get_args(one) else {one} for one in get_args(hint)]
    return {value for one in found for value in one if isinstance(value, str)}


@EACH
def test_an_enum_has_the_values_of_its_python_type(convert: Any, kind: Any, empty: Any) -> None:
    hints = get_type_hints(type(empty))
    sets = {**hints, "outputs": ImageOutput | DenseTask}
    for field in kind.DESCRIPTOR.fields:
        if field.enum_type is not None:
            assert set(enum_names(field.enum_type).values()) == values(sets[field.name])
    if "templates" in hints:
        names = enum_names(text_pb2.TemplateSet.DESCRIPTOR)
        assert set(names.values()) == values(hints["templates"])


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<u2", ">u2"])
def test_tensors_are_little_endian_rows(dtype: str) -> None:
    array = np.arange(6).reshape(3, 2).T.astype(dtype)
    wire = tensor_pb2.Tensor()
    write_tensor(wire, array)
    known = {tensor_pb2.DATA_TYPE_FLOAT32: "<f4", tensor_pb2.DATA_TYPE_UINT16: "<u2"}
    read = np.frombuffer(wire.data, known[wire.data_type]).reshape(tuple(wire.shape))
    np.testing.assert_array_equal(read, array)


def test_a_field_of_a_newer_contract_is_refused_with_its_place() -> None:
    newer = segment_pb2.SegmentClass.FromString(b"\x0a\x03dog\xa2\x06\x01x")
    request = SEGMENT(classes=[segment_pb2.SegmentClass(name="a"), newer])
    with pytest.raises(InvalidRequest) as caught:
        refuse_unknown_fields(request)
    assert (caught.value.code, caught.value.param) == ("unknown_field", "classes[1]")
    with pytest.raises(InvalidRequest) as at_the_top:
        converters.to_embed_images(EMBED.FromString(b"\xa2\x06\x01x"))
    assert at_the_top.value.param is None
    infer = open_inference_pb2.ModelInferRequest()
    infer.parameters["fit"].string_param = "squash"
    refuse_unknown_fields(infer)
    infer.parameters["fit"].MergeFromString(b"\xa2\x06\x01x")
    with pytest.raises(InvalidRequest) as in_a_map:
        refuse_unknown_fields(infer)
    assert in_a_map.value.param == "parameters.fit"
