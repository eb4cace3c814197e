"""Protobuf converts to messages of the data plane and back; unknown fields are refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from service.errors import InvalidRequest
from service.grpc.converters import (
    DATA_TYPES,
    FEATURE_KINDS,
    FEATURES,
    FITS,
    GLOBAL_FEATURES,
    MAP_SIZES,
    MODES,
    OUTPUTS,
    SCOPES,
    TEMPLATE_SETS,
    VECTOR_TYPES,
    from_classify_images,
    from_depth,
    from_embed_images,
    from_embed_texts,
    from_normals,
    from_segment_images,
    from_visualize_features,
    refuse_unknown_fields,
    tensor,
    to_classify_images,
    to_embed_images,
    to_embed_texts,
    to_estimate_maps,
    to_segment_images,
    to_visualize_features,
)
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
    Classification,
    ClassifyImagesRequest,
    ClassifyImagesResponse,
    EmbedImagesRequest,
    EmbedImagesResponse,
    EmbedTextsRequest,
    EmbedTextsResponse,
    EstimateMapsRequest,
    EstimateMapsResponse,
    Segmentation,
    SegmentClass,
    SegmentImagesRequest,
    SegmentImagesResponse,
    VisualizeFeaturesRequest,
    VisualizeFeaturesResponse,
)
from service.outputs.vectors import pack_all

IMAGES = [image_pb2.Image(encoded=b"x")]
EMBED, TEXTS = embed_pb2.EmbedImagesRequest, embed_pb2.EmbedTextsRequest
SEGMENT, CLASSIFY = segment_pb2.SegmentImagesRequest, classify_pb2.ClassifyImagesRequest
VIEW = features_pb2.VisualizeFeaturesRequest
DEPTH, NORMALS = dense_pb2.EstimateDepthRequest, dense_pb2.EstimateNormalsRequest
WRONG = InvalidRequest("images[0] is wrong.", code="invalid_image", param="images[0]")


DOG = segment_pb2.SegmentClass(name="dog", prompts=["a dog"])
WHERE: dict[str, Any] = {"model": "m", "images": IMAGES, "resolution": 56}
ONE: dict[str, Any] = {"images": (b"x",)}
NONE: dict[str, Any] = {"images": ()}
ANSWERED: dict[str, Any] = {"model": "m", **ONE, "resolution": 56}
to_depth, to_normals = (partial(to_estimate_maps, task=task) for task in ("depth", "normals"))


@pytest.mark.parametrize(
    ("convert", "request_", "expected"),
    [
        # Absent fields have the defaults of the messages.
        (to_embed_images, EMBED(images=IMAGES), EmbedImagesRequest(**ONE)),
        (to_embed_texts, TEXTS(texts=["a"]), EmbedTextsRequest(texts=("a",))),
        (to_segment_images, SEGMENT(images=IMAGES), SegmentImagesRequest(**ONE, classes=())),
        (to_classify_images, CLASSIFY(images=IMAGES), ClassifyImagesRequest(**ONE, classes=())),
        (to_visualize_features, VIEW(images=IMAGES), VisualizeFeaturesRequest(**ONE)),
        (to_depth, DEPTH(images=IMAGES), EstimateMapsRequest(**ONE, task="depth")),
        # Zero and false are values.
        (
            to_embed_images,
            EMBED(images=IMAGES, normalize=False, resolution=0),
            EmbedImagesRequest(images=(b"x",), normalize=False, resolution=0),
        ),
        (
            to_segment_images,
            SEGMENT(background_threshold=0.0),
            SegmentImagesRequest(**NONE, classes=(), background_threshold=0.0),
        ),
        (
            to_classify_images,
            CLASSIFY(temperature=0.0, top_k=0),
            ClassifyImagesRequest(**NONE, classes=(), temperature=0.0, top_k=0),
        ),
        (
            to_visualize_features,
            VIEW(group_count=0, seed=0),
            VisualizeFeaturesRequest(**NONE, group_count=0, seed=0),
        ),
        # Every field is read.
        (
            to_embed_texts,
            TEXTS(texts=["a"], vector_type=embed_pb2.VECTOR_TYPE_INT8, partial=True),
            EmbedTextsRequest(texts=("a",), vector_type="int8", partial=True),
        ),
        (
            to_segment_images,
            SEGMENT(
                **WHERE,
                classes=[DOG],
                templates=text_pb2.Templates(custom=text_pb2.CustomTemplates(templates=["the {}"])),
                features=segment_pb2.DENSE_FEATURES_PATCHES,
                fit=image_pb2.FIT_SQUASH,
                background_threshold=0.25,
                background_classes=[segment_pb2.SegmentClass(name="wall")],
                include_scores=True,
                mode=segment_pb2.SEGMENT_MODE_SLIDE,
                partial=True,
            ),
            SegmentImagesRequest(
                **ANSWERED,
                classes=(SegmentClass(name="dog", prompts=("a dog",)),),
                templates=("the {}",),
                features="patches",
                fit="squash",
                background_threshold=0.25,
                background_classes=(SegmentClass(name="wall"),),
                include_scores=True,
                mode="slide",
                partial=True,
            ),
        ),
        (
            to_classify_images,
            CLASSIFY(
                **WHERE,
                classes=[DOG],
                templates=text_pb2.Templates(set=text_pb2.TEMPLATE_SET_TCL),
                features=classify_pb2.GLOBAL_FEATURES_CLS2,
                temperature=0.5,
                top_k=3,
                fit=image_pb2.FIT_ASPECT,
                partial=True,
            ),
            ClassifyImagesRequest(
                **ANSWERED,
                classes=(SegmentClass(name="dog", prompts=("a dog",)),),
                templates="tcl",
                features="cls2",
                temperature=0.5,
                top_k=3,
                fit="aspect",
                partial=True,
            ),
        ),
        (
            to_visualize_features,
            VIEW(
                **WHERE,
                kind=features_pb2.FEATURE_KIND_GROUPS,
                features=segment_pb2.DENSE_FEATURES_VALUES,
                scope=features_pb2.FEATURE_SCOPE_REQUEST,
                group_count=4,
                seed=7,
                fit=image_pb2.FIT_SQUASH,
                size=dense_pb2.MAP_SIZE_MODEL,
                partial=True,
            ),
            VisualizeFeaturesRequest(
                **ANSWERED,
                kind="groups",
                features="values",
                scope="request",
                group_count=4,
                seed=7,
                fit="squash",
                size="model",
                partial=True,
            ),
        ),
        (
            to_normals,
            NORMALS(**WHERE, fit=image_pb2.FIT_SQUASH, size=dense_pb2.MAP_SIZE_MODEL),
            EstimateMapsRequest(**ANSWERED, task="normals", fit="squash", size="model"),
        ),
    ],
)
def test_a_request_becomes_the_message_with_the_same_fields(
    convert: Callable[[Any], Any], request_: Any, expected: Any
) -> None:
    assert convert(request_) == expected


def test_every_value_of_every_enum_has_a_meaning() -> None:
    tables: list[tuple[Any, Any]] = [
        (embed_pb2.ImageOutput, OUTPUTS),
        (image_pb2.Fit, FITS),
        (dense_pb2.MapSize, MAP_SIZES),
        (segment_pb2.DenseFeatures, FEATURES),
        (text_pb2.TemplateSet, TEMPLATE_SETS),
        (segment_pb2.SegmentMode, MODES),
        (embed_pb2.VectorType, VECTOR_TYPES),
        (classify_pb2.GlobalFeatures, GLOBAL_FEATURES),
        (features_pb2.FeatureKind, FEATURE_KINDS),
        (features_pb2.FeatureScope, SCOPES),
    ]
    for enum, table in tables:
        assert sorted(table) == [number for number in enum.values() if number]
    assert sorted(DATA_TYPES.values()) == [n for n in tensor_pb2.DataType.values() if n]


@pytest.mark.parametrize(
    ("convert", "kind", "field"),
    [
        (to_embed_images, EMBED, "fit"),
        (to_depth, DEPTH, "size"),
        *[(to_visualize_features, VIEW, f) for f in ("kind", "scope", "features", "size", "fit")],
    ],
)
def test_an_unknown_value_of_an_enum_is_refused(convert: Any, kind: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert(kind(**{field: 9}))
    assert caught.value.param == field


def test_empty_templates_are_refused_and_an_unknown_output_is_left_to_the_data_plane() -> None:
    with pytest.raises(InvalidRequest) as templates:
        to_embed_texts(TEXTS(texts=["a"], templates=text_pb2.Templates()))
    assert templates.value.param == "templates"
    outputs = to_embed_images(EMBED(outputs=[9])).outputs  # type: ignore[list-item]
    assert outputs == ("9",), "the data plane refuses it with its index"


def test_embeddings_keep_their_places_beside_errors_and_rows_have_scales() -> None:
    wrong = InvalidRequest("no image", param="images[1]")
    rows, scales = pack_all({"patches": np.ones((2, 3, 4), np.float32)}, "int8")
    answer = EmbedImagesResponse(
        model="m", embeddings=(rows,) * 2, scales=(scales,) * 2, errors={1: wrong}
    )
    wire = from_embed_images(answer)
    assert [e.HasField("patches") for e in wire.embeddings] == [True, False, True]
    assert [e.index for e in wire.errors] == [1]
    last = wire.embeddings[2].patches
    assert (list(last.shape), last.data_type) == ([2, 3, 4], tensor_pb2.DATA_TYPE_INT8)
    assert list(last.row_scales) == [np.float32(1 / 127)] * 6
    texts = EmbedTextsResponse(
        model="m", embeddings_TD=np.ones((1, 2), np.float16), errors={0: wrong}
    )
    matrix = from_embed_texts(texts).embeddings
    assert np.frombuffer(matrix.data, "<f2").tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<u2", ">u2"])
def test_tensors_are_little_endian_rows(dtype: str) -> None:
    array = np.arange(6).reshape(3, 2).T.astype(dtype)
    wire = tensor(array)
    known = {tensor_pb2.DATA_TYPE_FLOAT32: "<f4", tensor_pb2.DATA_TYPE_UINT16: "<u2"}
    read = np.frombuffer(wire.data, known[wire.data_type]).reshape(tuple(wire.shape))
    np.testing.assert_array_equal(read, array)


def test_masks_name_their_classes() -> None:
    mask = Segmentation(
        labels_HW=np.array([[0, 2]], np.uint16), scores_HW=None, area_shares=(0.5, 0.0, 0.5)
    )
    answer = SegmentImagesResponse(model="m", classes=("dog", "sky"), segmentations=(mask,))
    (wire,) = from_segment_images(answer).segmentations
    assert [(c.label, c.name, c.area_share) for c in wire.classes] == [
        (1, "dog", 0),
        (2, "sky", 0.5),
    ]
    assert wire.background_share == 0.5
    assert not wire.HasField("scores")


def test_maps_keep_their_places_among_several_errors() -> None:
    errors = {place: InvalidRequest(f"images[{place}]: broken.") for place in (3, 0, 2)}
    maps = (np.full((1, 1), 1, np.float32), np.full((1, 1), 4, np.float32))
    wire = from_depth(EstimateMapsResponse(model="m", maps=maps, errors=errors))
    values = [np.frombuffer(one.depth.data, "<f4").tolist() for one in wire.maps]
    assert values == [[], [1], [], [], [4]]
    assert [error.index for error in wire.errors] == [0, 2, 3]
    normals = EstimateMapsResponse(model="m", maps=(np.ones((2, 3, 3), np.float32),) * 2)
    assert [tuple(m.normals.shape) for m in from_normals(normals).maps] == [(2, 3, 3)] * 2


def test_answers_keep_their_places_beside_errors() -> None:
    found = Classification(
        labels_K=np.array([2, 1], np.uint16),
        probabilities_K=np.array([0.75, 0.25], np.float32),
        cosines_K=np.array([0.5, -0.5], np.float32),
    )
    classes = ClassifyImagesResponse(
        model="m", classes=("dog", "sky"), classifications=(found,), errors={0: WRONG}
    )
    wire = from_classify_images(classes)
    assert [len(one.classes) for one in wire.classifications] == [0, 2]
    assert (wire.classifications[1].classes[0].name, wire.errors[0].index) == ("sky", 0)
    maps = VisualizeFeaturesResponse(
        model="m", maps=(np.ones((2, 3), np.uint16),), errors={0: WRONG}
    )
    views = from_visualize_features(maps)
    assert [tuple(m.features.shape) for m in views.maps] == [(), (2, 3)]
    (error,) = views.errors
    assert (error.reason, error.message, error.field) == (
        "invalid_image",
        "images[0] is wrong.",
        "images[0]",
    )


# What a newer client says that this server would ignore is refused.


def test_a_field_from_the_future_is_refused_with_its_place() -> None:
    newer = segment_pb2.SegmentClass.FromString(b"\x0a\x03dog\xa2\x06\x01x")
    request = segment_pb2.SegmentImagesRequest(classes=[segment_pb2.SegmentClass(name="a"), newer])
    with pytest.raises(InvalidRequest) as caught:
        refuse_unknown_fields(request)
    assert (caught.value.code, caught.value.param) == ("unknown_field", "classes[1]")
    with pytest.raises(InvalidRequest) as at_the_top:
        to_embed_images(embed_pb2.EmbedImagesRequest.FromString(b"\xa2\x06\x01x"))
    assert at_the_top.value.param is None


def test_values_of_a_map_are_looked_into() -> None:
    request = open_inference_pb2.ModelInferRequest()
    request.parameters["fit"].string_param = "squash"
    refuse_unknown_fields(request)
    request.parameters["fit"].MergeFromString(b"\xa2\x06\x01x")
    with pytest.raises(InvalidRequest) as caught:
        refuse_unknown_fields(request)
    assert caught.value.param == "parameters.fit"
