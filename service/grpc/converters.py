"""Protobuf messages to messages of the data plane, and back; the only module that knows both."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from numpy.typing import NDArray

from model.dense_maps import MapTask
from model.preprocess import Fit
from service.errors import InvalidRequest
from service.grpc.generated import (
    classify_pb2,
    dense_pb2,
    embed_pb2,
    features_pb2,
    image_pb2,
    item_error_pb2,
    model_pb2,
    segment_pb2,
    tensor_pb2,
    text_pb2,
)
from service.messages import (
    ClassifyImagesRequest,
    ClassifyImagesResponse,
    EmbedImagesRequest,
    EmbedImagesResponse,
    EmbedTextsRequest,
    EmbedTextsResponse,
    EstimateMapsRequest,
    EstimateMapsResponse,
    FeatureKind,
    Features,
    FeatureScope,
    FloatArray,
    GlobalFeatures,
    ItemErrors,
    MapSize,
    ModelInfo,
    Segmentation,
    SegmentClass,
    SegmentImagesRequest,
    SegmentImagesResponse,
    SegmentMode,
    TemplateSet,
    VectorType,
    VisualizeFeaturesRequest,
    VisualizeFeaturesResponse,
)
from service.outputs.masks import class_color

T = TypeVar("T")
NumberT = TypeVar("NumberT", bound=int)
OUTPUTS: Mapping[embed_pb2.ImageOutput, str] = {
    embed_pb2.IMAGE_OUTPUT_PATCHES: "patches",
    embed_pb2.IMAGE_OUTPUT_VALUES: "values",
    embed_pb2.IMAGE_OUTPUT_CLS1: "cls1",
    embed_pb2.IMAGE_OUTPUT_CLS2: "cls2",
    embed_pb2.IMAGE_OUTPUT_DEPTH: "depth",
    embed_pb2.IMAGE_OUTPUT_NORMALS: "normals",
}
FITS: Mapping[image_pb2.Fit, Fit] = {image_pb2.FIT_SQUASH: "squash", image_pb2.FIT_ASPECT: "aspect"}
MAP_SIZES: Mapping[dense_pb2.MapSize, MapSize] = {
    dense_pb2.MAP_SIZE_IMAGE: "image",
    dense_pb2.MAP_SIZE_MODEL: "model",
}
FEATURES: Mapping[segment_pb2.DenseFeatures, Features] = {
    segment_pb2.DENSE_FEATURES_VALUES: "values",
    segment_pb2.DENSE_FEATURES_PATCHES: "patches",
}
TEMPLATE_SETS: Mapping[text_pb2.TemplateSet, TemplateSet] = {
    text_pb2.TEMPLATE_SET_NONE: "none",
    text_pb2.TEMPLATE_SET_TCL: "tcl",
}
MODES: Mapping[segment_pb2.SegmentMode, SegmentMode] = {
    segment_pb2.SEGMENT_MODE_WHOLE: "whole",
    segment_pb2.SEGMENT_MODE_SLIDE: "slide",
}
VECTOR_TYPES: Mapping[embed_pb2.VectorType, VectorType] = {
    embed_pb2.VECTOR_TYPE_FLOAT32: "float32",
    embed_pb2.VECTOR_TYPE_FLOAT16: "float16",
    embed_pb2.VECTOR_TYPE_INT8: "int8",
}
DATA_TYPES: Mapping[str, tensor_pb2.DataType] = {
    "float32": tensor_pb2.DATA_TYPE_FLOAT32,
    "uint16": tensor_pb2.DATA_TYPE_UINT16,
    "float16": tensor_pb2.DATA_TYPE_FLOAT16,
    "int8": tensor_pb2.DATA_TYPE_INT8,
}
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


def to_embed_images(request: embed_pb2.EmbedImagesRequest) -> EmbedImagesRequest:
    """Convert a request; raises `InvalidRequest` for an unknown field or value."""
    refuse_unknown_fields(request)
    default = EmbedImagesRequest
    outputs = tuple(OUTPUTS.get(value, str(value)) for value in request.outputs)
    return default(
        images=tuple(image.encoded for image in request.images),
        model=request.model or None,
        outputs=outputs or default.outputs,
        normalize=request.normalize if request.HasField("normalize") else default.normalize,
        resolution=request.resolution if request.HasField("resolution") else default.resolution,
        fit=choice(FITS, request.fit, "fit") or default.fit,
        vector_type=choice(VECTOR_TYPES, request.vector_type, "dtype") or default.vector_type,
        partial=request.partial,
    )


def from_embed_images(answer: EmbedImagesResponse) -> embed_pb2.EmbedImagesResponse:
    """Convert an answer."""
    message = embed_pb2.EmbedImagesResponse(model=answer.model, errors=item_errors(answer.errors))
    scales = answer.scales or ({},) * len(answer.embeddings)
    rows = zip(answer.embeddings, scales, strict=True)
    for place in range(len(answer.embeddings) + len(answer.errors)):
        # Written in place: a message that is added to another is copied, at every level.
        embedding = message.embeddings.add()
        if place not in answer.errors:
            outputs, factors = next(rows)
            for name, array in outputs.items():
                write_tensor(getattr(embedding, name), array, factors.get(name))
    return message


def to_embed_texts(request: embed_pb2.EmbedTextsRequest) -> EmbedTextsRequest:
    """Convert a request; raises `InvalidRequest` for an unknown field or value."""
    refuse_unknown_fields(request)
    default = EmbedTextsRequest
    given = templates_of(request.templates) if request.HasField("templates") else None
    return default(
        texts=tuple(request.texts),
        model=request.model or None,
        templates=default.templates if given is None else given,
        normalize=request.normalize if request.HasField("normalize") else default.normalize,
        vector_type=choice(VECTOR_TYPES, request.vector_type, "dtype") or default.vector_type,
        partial=request.partial,
    )


def from_embed_texts(answer: EmbedTextsResponse) -> embed_pb2.EmbedTextsResponse:
    """Convert an answer."""
    rows_TD, scales_T = answer.in_places()
    return embed_pb2.EmbedTextsResponse(
        model=answer.model, embeddings=tensor(rows_TD, scales_T), errors=item_errors(answer.errors)
    )


def to_segment_images(request: segment_pb2.SegmentImagesRequest) -> SegmentImagesRequest:
    """Convert a request; raises `InvalidRequest` for an unknown field or value."""
    refuse_unknown_fields(request)
    default = SegmentImagesRequest
    has = request.HasField
    return default(
        images=tuple(image.encoded for image in request.images),
        classes=classes_of(request.classes),
        model=request.model or None,
        templates=templates_of(request.templates) if has("templates") else default.templates,
        features=choice(FEATURES, request.features, "features"),
        resolution=request.resolution if has("resolution") else default.resolution,
        fit=choice(FITS, request.fit, "fit") or default.fit,
        background_threshold=(
            request.background_threshold
            if has("background_threshold")
            else default.background_threshold
        ),
        background_classes=classes_of(request.background_classes),
        include_scores=request.include_scores if has("include_scores") else default.include_scores,
        mode=choice(MODES, request.mode, "mode") or default.mode,
        partial=request.partial,
    )


def from_segment_images(answer: SegmentImagesResponse) -> segment_pb2.SegmentImagesResponse:
    """Convert an answer."""
    masks = [_segmentation(mask, answer.classes) for mask in answer.segmentations]
    return segment_pb2.SegmentImagesResponse(
        model=answer.model,
        segmentations=in_places(masks, answer.errors, segment_pb2.Segmentation()),
        errors=item_errors(answer.errors),
    )


def _segmentation(mask: Segmentation, names: Sequence[str]) -> segment_pb2.Segmentation:
    background_share, *shares = mask.area_shares
    classes = [
        segment_pb2.ClassArea(label=k, name=name, color=class_color(k), area_share=share)
        for k, (name, share) in enumerate(zip(names, shares, strict=True), start=1)
    ]
    return segment_pb2.Segmentation(
        labels=tensor(mask.wire_labels),
        scores=None if mask.scores_HW is None else tensor(mask.scores_HW),
        classes=classes,
        background_share=background_share,
    )


def to_classify_images(request: classify_pb2.ClassifyImagesRequest) -> ClassifyImagesRequest:
    """Convert a request; raises `InvalidRequest` for an unknown field or value."""
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
    """Convert an answer."""
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


def to_estimate_maps(
    request: dense_pb2.EstimateDepthRequest | dense_pb2.EstimateNormalsRequest, task: MapTask
) -> EstimateMapsRequest:
    """Convert a request; raises `InvalidRequest` for an unknown field or value."""
    refuse_unknown_fields(request)
    default = EstimateMapsRequest
    return default(
        task=task,
        images=tuple(image.encoded for image in request.images),
        model=request.model or None,
        resolution=request.resolution if request.HasField("resolution") else default.resolution,
        fit=choice(FITS, request.fit, "fit") or default.fit,
        size=choice(MAP_SIZES, request.size, "size") or default.size,
        partial=request.partial,
    )


def from_depth(answer: EstimateMapsResponse) -> dense_pb2.EstimateDepthResponse:
    """Convert an answer."""
    maps = [dense_pb2.DepthMap(depth=tensor(depth_HW)) for depth_HW in answer.maps]
    return dense_pb2.EstimateDepthResponse(
        model=answer.model,
        maps=in_places(maps, answer.errors, dense_pb2.DepthMap()),
        errors=item_errors(answer.errors),
    )


def from_normals(answer: EstimateMapsResponse) -> dense_pb2.EstimateNormalsResponse:
    """Convert an answer."""
    maps = [dense_pb2.NormalMap(normals=tensor(normals_HW3)) for normals_HW3 in answer.maps]
    return dense_pb2.EstimateNormalsResponse(
        model=answer.model,
        maps=in_places(maps, answer.errors, dense_pb2.NormalMap()),
        errors=item_errors(answer.errors),
    )


def to_visualize_features(
    request: features_pb2.VisualizeFeaturesRequest,
) -> VisualizeFeaturesRequest:
    """Convert a request; raises `InvalidRequest` for an unknown field or value."""
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
    """Convert an answer."""
    maps = [features_pb2.FeatureMap(features=tensor(array)) for array in answer.maps]
    return features_pb2.VisualizeFeaturesResponse(
        model=answer.model,
        maps=in_places(maps, answer.errors, features_pb2.FeatureMap()),
        errors=item_errors(answer.errors),
    )


def from_model(info: ModelInfo) -> model_pb2.Model:
    """Describe a served model."""
    manifest, limits = info.manifest, info.limits
    scores = [
        model_pb2.Score(**{"item_count" if k == "count" else k: v for k, v in score.items()})
        for score in info.scores()
    ]
    return model_pb2.Model(
        name=manifest.name,
        variant=manifest.variant,
        embed_dim=manifest.embed_dim,
        patch_size=manifest.patch_size,
        native_size=manifest.native_size,
        min_size=manifest.min_size,
        max_size=manifest.max_size,
        size_multiple=manifest.size_multiple,
        max_text_tokens=manifest.max_text_tokens,
        outputs=[_number(OUTPUTS, name) for name in info.outputs if name != "text"],
        default_features=_number(FEATURES, manifest.zero_shot.features),
        default_templates=_number(TEMPLATE_SETS, manifest.zero_shot.templates),
        runtime=info.runtime,
        precision=info.precision,
        device=info.device,
        runtime_reason=info.runtime_reason,
        package_digest=manifest.digest,
        parity=[model_pb2.Parity(**row) for row in info.parity_rows()],
        limits=model_pb2.Limits(
            max_image_count=limits.max_images,
            max_text_count=limits.max_texts,
            max_class_count=limits.max_classes,
            max_image_bytes=limits.max_image_bytes,
            max_image_pixels=limits.max_image_pixels,
            max_request_bytes=limits.max_request_bytes,
        ),
        scores=scores,
        licence=manifest.licence,
        buckets=[
            model_pb2.Bucket(
                height=bucket.height,
                width=bucket.width,
                max_batch_image_count=bucket.max_batch_images,
                run_seconds=bucket.run_s,
                peak_bytes=bucket.peak_bytes,
            )
            for bucket in info.buckets
        ],
    )


def refuse_unknown_fields(message: Message, path: str = "", *, is_deep: bool = True) -> None:
    """Refuse fields that are newer than this server, which would otherwise be ignored.

    Args:
        message: The message to check.
        path: Its place in the request.
        is_deep: Whether to check the messages inside it too.

    Raises:
        InvalidRequest: There is an unknown field.
    """
    for unknown in UnknownFieldSet(message):  # type: ignore[attr-defined]  # its stub lacks __iter__
        where = f"{path}: field" if path else "Field"
        raise InvalidRequest(
            f"{where} number {unknown.field_number} is unknown.",
            code="unknown_field",
            param=path or None,
        )
    for field, value in message.ListFields() if is_deep else ():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        name = f"{path}.{field.name}" if path else field.name
        if isinstance(value, Message):
            refuse_unknown_fields(value, name)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, item in value.items():
                if isinstance(item, Message):
                    refuse_unknown_fields(item, f"{name}.{key}")
        else:
            for index, item in enumerate(value):
                refuse_unknown_fields(item, f"{name}[{index}]")


def templates_of(templates: text_pb2.Templates) -> TemplateSet | tuple[str, ...]:
    """The name of a template set, or the caller's own templates.

    Raises:
        InvalidRequest: Neither is given.
    """
    if templates.WhichOneof("choice") == "custom":
        return tuple(templates.custom.templates)
    chosen = choice(TEMPLATE_SETS, templates.set, "templates")
    if chosen is None:
        raise InvalidRequest("templates: give `set` or `custom`.", param="templates")
    return chosen


def classes_of(classes: Sequence[segment_pb2.SegmentClass]) -> tuple[SegmentClass, ...]:
    """Classes with their prompts."""
    return tuple(SegmentClass(name=c.name, prompts=tuple(c.prompts)) for c in classes)


def choice(table: Mapping[NumberT, T], value: NumberT, param: str) -> T | None:
    """The Python value of an enum value; None for zero, an unset field."""
    if value == 0:
        return None
    if value not in table:
        raise InvalidRequest(f"{param}: unknown value {value}.", param=param)
    return table[value]


def _number(table: Mapping[NumberT, str], name: str) -> NumberT:
    return next(number for number, known in table.items() if known == name)


def tensor(array: NDArray[np.generic], scales: FloatArray | None = None) -> tensor_pb2.Tensor:
    """An array, and the scales of its rows if it is quantized, as a message."""
    message = tensor_pb2.Tensor()
    write_tensor(message, array, scales)
    return message


def write_tensor(
    message: tensor_pb2.Tensor, array: NDArray[np.generic], scales: FloatArray | None = None
) -> None:
    """Fill a message with an array; the array is copied once."""
    message.shape.extend(array.shape)
    message.data_type = DATA_TYPES[array.dtype.name]
    message.data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    if scales is not None:
        message.row_scales.extend(scales.ravel().tolist())


def in_places(items: Iterable[T], errors: ItemErrors, empty: T) -> list[T]:
    """One result per item of the request: `empty` for items with an error."""
    good = list(items)
    for index in sorted(errors):
        good.insert(index, empty)
    return good


def item_errors(errors: ItemErrors) -> list[item_error_pb2.ItemError]:
    """The errors of single items, in order."""
    return [
        item_error_pb2.ItemError(
            index=index, reason=error.code, message=error.message, field=error.param or ""
        )
        for index, error in sorted(errors.items())
    ]
