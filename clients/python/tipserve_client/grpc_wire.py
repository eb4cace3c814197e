"""Requests and answers as `tipserve.v1.EncoderService` has them."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from tipserve_client.answers import (
    EMBEDDINGS,
    ClassArea,
    ClassScore,
    Int8Vectors,
    ModelInfo,
    Segmentation,
    in_places,
)
from tipserve_client.asks import MAPS, Ask, Method
from tipserve_client.errors import (
    BY_CODE,
    BY_REASON,
    InternalError,
    RequestTooLarge,
    TipserveError,
    item_error,
)
from tipserve_client.generated import (
    classify_pb2,
    dense_pb2,
    embed_pb2,
    features_pb2,
    image_pb2,
    item_error_pb2,
    model_pb2,
    segment_pb2,
    stream_pb2,
    tensor_pb2,
    text_pb2,
)
from tipserve_client.status_details import Details

RPCS: Final[Mapping[Method, tuple[str, Any]]] = {
    "embed_images": ("EmbedImages", embed_pb2.EmbedImagesRequest),
    "embed_texts": ("EmbedTexts", embed_pb2.EmbedTextsRequest),
    "segment_images": ("SegmentImages", segment_pb2.SegmentImagesRequest),
    "classify_images": ("ClassifyImages", classify_pb2.ClassifyImagesRequest),
    "visualize_features": ("VisualizeFeatures", features_pb2.VisualizeFeaturesRequest),
    "estimate_depth": ("EstimateDepth", dense_pb2.EstimateDepthRequest),
    "estimate_normals": ("EstimateNormals", dense_pb2.EstimateNormalsRequest),
}
ENUMS: Final[Mapping[str, tuple[Any, str]]] = {
    "outputs": (embed_pb2.ImageOutput, "IMAGE_OUTPUT"),
    "fit": (image_pb2.Fit, "FIT"),
    "size": (dense_pb2.MapSize, "MAP_SIZE"),
    "features": (segment_pb2.DenseFeatures, "DENSE_FEATURES"),
    "mode": (segment_pb2.SegmentMode, "SEGMENT_MODE"),
    "kind": (features_pb2.FeatureKind, "FEATURE_KIND"),
    "scope": (features_pb2.FeatureScope, "FEATURE_SCOPE"),
    "dtype": (embed_pb2.VectorType, "VECTOR_TYPE"),
}
# Fields whose names are not those that callers and REST have for them.
FIELD_NAMES: Final = {"dtype": "vector_type"}
# Where answers have what they say of each image; the rest is in `maps`.
ROWS: Final[Mapping[Method, str]] = {
    "embed_images": "embeddings",
    "segment_images": "segmentations",
    "classify_images": "classifications",
}
SCORES: Final = ("label", "name", "probability", "cosine")
GLOBAL_FEATURES: Final = (classify_pb2.GlobalFeatures, "GLOBAL_FEATURES")
DTYPES: Final = {
    tensor_pb2.DATA_TYPE_FLOAT32: "<f4",
    tensor_pb2.DATA_TYPE_UINT16: "<u2",
    tensor_pb2.DATA_TYPE_FLOAT16: "<f2",
    tensor_pb2.DATA_TYPE_INT8: "i1",
}
# A value that the contract does not know is the server's to refuse.
UNKNOWN_VALUE: Final = 99
RESOURCE_EXHAUSTED: Final = 8
# Causes of what gRPC says by itself, without details; over HTTP they have the same names.
CORE_REASONS: Final = {4: "deadline_exceeded", 8: "request_too_large", 14: "unreachable"}


def write_ask(ask: Ask) -> Any:
    """The message of a request."""
    fields: dict[str, Any] = {}
    for name, value in ask.fields.items():
        if name in ENUMS:
            is_global = name == "features" and ask.method == "classify_images"
            kind, prefix = GLOBAL_FEATURES if is_global else ENUMS[name]
            is_list = not isinstance(value, str)
            numbers = [_number(kind, prefix, v) for v in (value if is_list else [value])]
            fields[FIELD_NAMES.get(name, name)] = numbers if is_list else numbers[0]
        elif name == "templates":
            fields[name] = _templates(value)
        elif name in {"classes", "background_classes"}:
            fields[name] = [segment_pb2.SegmentClass(**entry) for entry in value]
        else:
            fields[name] = value
    if ask.method == "embed_texts":
        fields["texts"] = ask.texts
    else:
        fields["images"] = [image_pb2.Image(encoded=image) for image in ask.images]
    return RPCS[ask.method][1](**fields)


def read_answer(ask: Ask, answer: Any, request_id: str | None = None) -> Any:
    """What a successful answer holds; of a partial one, its items."""
    if ask.method == "embed_texts" and not ask.is_partial:
        return vectors(answer.embeddings)
    errors = {told.index: _item_error(told, request_id) for told in answer.errors}
    errors.update(ask.errors)
    values = {
        place: _value(ask, row)
        for place, row in enumerate(_rows(ask.method, answer))
        if place not in errors
    }
    return in_places(values, errors) if ask.is_partial else list(values.values())


def read_model(model: model_pb2.Model) -> ModelInfo:
    """What is told about a served model."""
    outputs = (embed_pb2.ImageOutput.Name(number) for number in model.outputs)
    return ModelInfo(
        name=model.name,
        embed_dim=model.embed_dim,
        patch_size=model.patch_size,
        native_size=model.native_size,
        min_size=model.min_size,
        max_size=model.max_size,
        size_multiple=model.size_multiple,
        outputs=tuple(name.removeprefix("IMAGE_OUTPUT_").lower() for name in outputs),
        limits={field.name: value for field, value in model.limits.ListFields()},
    )


def read_error(code: int, message: str, metadata: Mapping[str, Any]) -> TipserveError:
    """What the end of an RPC says that is no success."""
    details = Details.read(metadata.get("grpc-status-details-bin", b""))
    retry_after_s = details.retry_after_s
    pushback = str(metadata.get("grpc-retry-pushback-ms", ""))
    if pushback.isdecimal():
        retry_after_s = int(pushback) / 1000
    kind = BY_REASON.get(details.reason) or BY_CODE.get(code, InternalError)
    if code == RESOURCE_EXHAUSTED and retry_after_s is None:
        kind = RequestTooLarge  # the core's own word for a message that is too large
    return kind(
        message,
        code=details.reason or CORE_REASONS.get(code, f"grpc_{code}"),
        param=details.field or None,
        request_id=metadata.get("x-request-id"),
        retry_after_s=retry_after_s,
    )


def read_stream_error(told: stream_pb2.StreamError) -> TipserveError:
    """Why one request of a stream has no answer."""
    kind = BY_REASON.get(told.reason) or BY_CODE.get(told.code, InternalError)
    delay = told.retry_delay
    return kind(
        told.message,
        code=told.reason,
        param=told.field or None,
        request_id=told.request_id or None,
        retry_after_s=delay.ToNanoseconds() / 1e9 if told.HasField("retry_delay") else None,
    )


def array(tensor: tensor_pb2.Tensor) -> NDArray[Any]:
    """A tensor as an array, which is read-only as its bytes are."""
    return np.frombuffer(tensor.data, DTYPES[tensor.data_type]).reshape(tuple(tensor.shape))


def vectors(tensor: tensor_pb2.Tensor) -> Any:
    """A tensor of embeddings: an array, or with int8 its whole numbers and their scales."""
    values = array(tensor)
    if values.dtype != np.int8:
        return values
    scales = np.array(tensor.row_scales, np.float32).reshape(values.shape[:-1])
    return Int8Vectors(values=values, scales=scales)


def _number(kind: Any, prefix: str, name: str) -> int:
    numbers: Mapping[str, int] = dict(kind.items())
    return numbers.get(f"{prefix}_{name.upper()}", UNKNOWN_VALUE)


def _templates(value: str | list[str]) -> text_pb2.Templates:
    if isinstance(value, str):
        number: Any = _number(text_pb2.TemplateSet, "TEMPLATE_SET", value)
        return text_pb2.Templates(set=number)
    return text_pb2.Templates(custom=text_pb2.CustomTemplates(templates=value))


def _rows(method: Method, answer: Any) -> Iterable[Any]:
    """What an answer has for each image or text, also where there is an error."""
    if method != "embed_texts":
        return cast("Iterable[Any]", getattr(answer, ROWS.get(method, "maps")))
    texts = vectors(answer.embeddings)
    if isinstance(texts, Int8Vectors):
        rows = zip(texts.values, texts.scales, strict=True)
        return (Int8Vectors(values=row, scales=np.asarray(scale)) for row, scale in rows)
    return cast("Iterable[Any]", texts)


def _value(ask: Ask, row: Any) -> Any:
    """What is told of one image or text."""
    if ask.method == "embed_images":
        kind = EMBEDDINGS[ask.fields.get("dtype", "float32")]
        return kind(**{field.name: vectors(tensor) for field, tensor in row.ListFields()})
    if ask.method == "embed_texts":
        return row
    if ask.method == "segment_images":
        return _segmentation(row)
    if ask.method == "classify_images":
        return [ClassScore(**{name: getattr(c, name) for name in SCORES}) for c in row.classes]
    return array(getattr(row, MAPS[ask.method]))


def _item_error(told: item_error_pb2.ItemError, request_id: str | None) -> TipserveError:
    return item_error(told.message, told.reason, param=told.field or None, request_id=request_id)


def _segmentation(item: segment_pb2.Segmentation) -> Segmentation:
    return Segmentation(
        labels=array(item.labels),
        scores=array(item.scores) if item.HasField("scores") else None,
        classes=tuple(
            ClassArea(label=c.label, name=c.name, color=c.color, area_share=c.area_share)
            for c in item.classes
        ),
        background_share=item.background_share,
    )
