"""Protobuf to messages and back, of classes and features."""

from typing import Any

import numpy as np
import pytest

from service.errors import InvalidRequest
from service.grpc.converters import (
    FEATURE_KINDS,
    GLOBAL_FEATURES,
    SCOPES,
    from_classify_images,
    from_visualize_features,
    to_classify_images,
    to_visualize_features,
)
from service.grpc.generated import (
    classify_pb2,
    dense_pb2,
    features_pb2,
    image_pb2,
    segment_pb2,
    text_pb2,
)
from service.messages import (
    Classification,
    ClassifyImagesRequest,
    ClassifyImagesResponse,
    SegmentClass,
    VisualizeFeaturesRequest,
    VisualizeFeaturesResponse,
)

IMAGES = [image_pb2.Image(encoded=b"x")]
WRONG = InvalidRequest("images[0] is wrong.", code="invalid_image", param="images[0]")


def test_nothing_said_means_the_defaults_of_the_messages() -> None:
    classify = to_classify_images(classify_pb2.ClassifyImagesRequest(images=IMAGES))
    assert classify == ClassifyImagesRequest(images=(b"x",), classes=())
    view = to_visualize_features(features_pb2.VisualizeFeaturesRequest(images=IMAGES))
    assert view == VisualizeFeaturesRequest(images=(b"x",))


def test_zero_is_a_value() -> None:
    asked = to_classify_images(classify_pb2.ClassifyImagesRequest(temperature=0.0, top_k=0))
    assert (asked.temperature, asked.top_k) == (0, 0)
    view = to_visualize_features(features_pb2.VisualizeFeaturesRequest(group_count=0, seed=0))
    assert (view.group_count, view.seed) == (0, 0)


def test_everything_that_can_be_said_of_classes() -> None:
    classify = classify_pb2.ClassifyImagesRequest(
        model="m",
        images=IMAGES,
        classes=[segment_pb2.SegmentClass(name="dog", prompts=["a dog"])],
        templates=text_pb2.Templates(set=text_pb2.TEMPLATE_SET_TCL),
        features=classify_pb2.GLOBAL_FEATURES_CLS2,
        temperature=0.5,
        top_k=3,
        resolution=56,
        fit=image_pb2.FIT_ASPECT,
        partial=True,
    )
    assert to_classify_images(classify) == ClassifyImagesRequest(
        model="m",
        images=(b"x",),
        classes=(SegmentClass(name="dog", prompts=("a dog",)),),
        templates="tcl",
        features="cls2",
        temperature=0.5,
        top_k=3,
        resolution=56,
        fit="aspect",
        partial=True,
    )


def test_everything_that_can_be_said_of_features() -> None:
    view = features_pb2.VisualizeFeaturesRequest(
        model="m",
        images=IMAGES,
        kind=features_pb2.FEATURE_KIND_GROUPS,
        features=segment_pb2.DENSE_FEATURES_VALUES,
        scope=features_pb2.FEATURE_SCOPE_REQUEST,
        group_count=4,
        seed=7,
        resolution=56,
        fit=image_pb2.FIT_SQUASH,
        size=dense_pb2.MAP_SIZE_MODEL,
        partial=True,
    )
    assert to_visualize_features(view) == VisualizeFeaturesRequest(
        model="m",
        images=(b"x",),
        kind="groups",
        features="values",
        scope="request",
        group_count=4,
        seed=7,
        resolution=56,
        fit="squash",
        size="model",
        partial=True,
    )


def test_every_value_of_every_enum_has_a_meaning() -> None:
    tables: list[tuple[Any, Any]] = [
        (classify_pb2.GlobalFeatures, GLOBAL_FEATURES),
        (features_pb2.FeatureKind, FEATURE_KINDS),
        (features_pb2.FeatureScope, SCOPES),
    ]
    for enum, table in tables:
        assert sorted(table) == [number for number in enum.values() if number]


@pytest.mark.parametrize("field", ["kind", "scope", "features", "size", "fit"])
def test_values_that_this_server_does_not_know(field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_visualize_features(features_pb2.VisualizeFeaturesRequest(**{field: 9}))  # type: ignore[arg-type]
    assert caught.value.param == field


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
