"""Protobuf to messages and back, of what images show: their classes, and their features."""

from collections.abc import Mapping

from service.grpc.converters import (
    FEATURES,
    FITS,
    MAP_SIZES,
    choice,
    classes_of,
    in_places,
    item_errors,
    templates_of,
    tensor,
)
from service.grpc.generated import classify_pb2, features_pb2
from service.grpc.unknown_fields import refuse_unknown_fields
from service.view_messages import (
    ClassifyImagesRequest,
    ClassifyImagesResponse,
    FeatureKind,
    FeatureScope,
    GlobalFeatures,
    VisualizeFeaturesRequest,
    VisualizeFeaturesResponse,
)

GLOBAL_FEATURES: Mapping[classify_pb2.GlobalFeatures, GlobalFeatures] = {
    classify_pb2.GLOBAL_FEATURES_CLS1: "cls1",
    classify_pb2.GLOBAL_FEATURES_CLS2: "cls2",
}
FEATURE_KINDS: Mapping[features_pb2.FeatureKind, FeatureKind] = {
    features_pb2.FEATURE_KIND_COLORS: "colors",
    features_pb2.FEATURE_KIND_COMPONENT: "component",
    features_pb2.FEATURE_KIND_GROUPS: "groups",
}
SCOPES: Mapping[features_pb2.FeatureScope, FeatureScope] = {
    features_pb2.FEATURE_SCOPE_IMAGE: "image",
    features_pb2.FEATURE_SCOPE_REQUEST: "request",
}


def to_classify_images(request: classify_pb2.ClassifyImagesRequest) -> ClassifyImagesRequest:
    """Read a request.

    Raises:
        InvalidRequest: A field or a value that this server does not know.
    """
    refuse_unknown_fields(request)
    default = ClassifyImagesRequest
    has = request.HasField
    return default(
        images=tuple(image.encoded for image in request.images),
        classes=classes_of(request.classes),
        model=request.model or None,
        templates=templates_of(request.templates) if has("templates") else default.templates,
        features=choice(GLOBAL_FEATURES, request.features, "features") or default.features,
        temperature=request.temperature if has("temperature") else default.temperature,
        top_k=request.top_k if has("top_k") else default.top_k,
        resolution=request.resolution if has("resolution") else default.resolution,
        fit=choice(FITS, request.fit, "fit") or default.fit,
        partial=request.partial,
    )


def from_classify_images(answer: ClassifyImagesResponse) -> classify_pb2.ClassifyImagesResponse:
    """Write an answer."""
    classifications = [
        classify_pb2.Classification(
            classes=[
                classify_pb2.ClassScore(
                    label=label,
                    name=answer.classes[label - 1],
                    probability=probability,
                    cosine=cosine,
                )
                for label, probability, cosine in found.rows()
            ]
        )
        for found in answer.classifications
    ]
    return classify_pb2.ClassifyImagesResponse(
        model=answer.model,
        classifications=in_places(classifications, answer.errors, classify_pb2.Classification()),
        errors=item_errors(answer.errors),
    )


def to_visualize_features(
    request: features_pb2.VisualizeFeaturesRequest,
) -> VisualizeFeaturesRequest:
    """Read a request.

    Raises:
        InvalidRequest: A field or a value that this server does not know.
    """
    refuse_unknown_fields(request)
    default = VisualizeFeaturesRequest
    has = request.HasField
    return default(
        images=tuple(image.encoded for image in request.images),
        model=request.model or None,
        kind=choice(FEATURE_KINDS, request.kind, "kind") or default.kind,
        features=choice(FEATURES, request.features, "features") or default.features,
        scope=choice(SCOPES, request.scope, "scope") or default.scope,
        group_count=request.group_count if has("group_count") else default.group_count,
        seed=request.seed if has("seed") else default.seed,
        resolution=request.resolution if has("resolution") else default.resolution,
        fit=choice(FITS, request.fit, "fit") or default.fit,
        size=choice(MAP_SIZES, request.size, "size") or default.size,
        partial=request.partial,
    )


def from_visualize_features(
    answer: VisualizeFeaturesResponse,
) -> features_pb2.VisualizeFeaturesResponse:
    """Write an answer."""
    maps = [features_pb2.FeatureMap(features=tensor(array)) for array in answer.maps]
    return features_pb2.VisualizeFeaturesResponse(
        model=answer.model,
        maps=in_places(maps, answer.errors, features_pb2.FeatureMap()),
        errors=item_errors(answer.errors),
    )
