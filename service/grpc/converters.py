"""Protobuf messages to messages of the data plane, and back; the only module that knows both."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import repeat
from operator import attrgetter
from typing import Any, Final, TypeVar

import numpy as np
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.grpc.generated import (
    classify_pb2,
    dense_pb2,
    embed_pb2,
    features_pb2,
    model_pb2,
    segment_pb2,
    tensor_pb2,
    text_pb2,
)
from service.messages import (
    MANIFEST_FIELDS,
    ClassExample,
    Classification,
    ClassifyImagesRequest,
    ClassifyImagesResponse,
    EmbedImagesRequest,
    EmbedImagesResponse,
    EmbedTextsRequest,
    EmbedTextsResponse,
    EstimateMapsRequest,
    FloatArray,
    ListResponse,
    ModelInfo,
    RunLengths,
    Segmentation,
    SegmentClass,
    SegmentImagesRequest,
    SegmentImagesResponse,
    VisualizeFeaturesRequest,
)
from service.outputs.colours import class_color
from service.outputs.run_lengths import compress_counts

M = TypeVar("M")
# Writes an answer of the data plane to a given response, or to a new one.
Writer = Callable[..., Any]


def _reader(message: Callable[..., M], **required: Any) -> Callable[[Message], M]:
    """A function that converts requests to messages of the data plane.

    Each field that is set goes to the field of its name; the others have the message's defaults.

    Args:
        message: Type of the message.
        required: Values of fields that the request does not set: those without a default, and
            those that its answer always has.
    """

    def read(request: Message) -> M:
        """Convert a request; raises `InvalidRequest` for an unknown field or value."""
        refuse_unknown_fields(request)
        return message(**{**required, **_fields(request)})

    return read


def _fields(message: Message) -> dict[str, Any]:
    """The Python values of the fields that are set."""
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        read = READERS[field.message_type.name]
        return tuple(map(read, value)) if field.is_repeated else read(value)
    if field.name == "outputs" and field.enum_type is not None:
        # The data plane refuses an unknown one with its index.
        names = enum_names(field.enum_type)
        return tuple(names.get(number, str(number)) for number in value)
    if field.enum_type is not None:
        param = "dtype" if field.name == "vector_type" else field.name
        return _read_enum(field.enum_type, value, param)
    return tuple(value) if field.is_repeated else value


def _read_templates(templates: text_pb2.Templates) -> str | tuple[str, ...]:
    """The name of a template set, or the caller's own templates."""
    if templates.WhichOneof("choice") == "custom":
        return tuple(templates.custom.templates)
    if not templates.set:
        raise InvalidRequest("templates: give `set` or `custom`.", param="templates")
    return _read_enum(text_pb2.TemplateSet.DESCRIPTOR, templates.set, "templates")


def _read_enum(enum: EnumDescriptor, value: int, param: str) -> str:
    names = enum_names(enum)
    if value not in names:
        raise InvalidRequest(f"{param}: unknown value {value}.", param=param)
    return names[value]


# Of the messages in requests, by the names of their types.
READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "Image": lambda image: image.encoded,
    "SegmentClass": lambda one: SegmentClass(**{"name": "", **_fields(one)}),
    "ClassExample": lambda one: ClassExample(**_fields(one)),
    "Point": lambda one: (one.x, one.y),
    "Box": lambda one: (one.left, one.top, one.width, one.height),
    "RunLengths": lambda one: RunLengths(size_hw=(one.height, one.width), counts=one.counts),
    "Templates": _read_templates,
}
to_embed_images = _reader(EmbedImagesRequest, images=())
to_embed_texts = _reader(EmbedTextsRequest, texts=())
to_segment_images = _reader(SegmentImagesRequest, images=(), classes=(), include_class_scores=True)
to_classify_images = _reader(ClassifyImagesRequest, images=(), classes=())
to_visualize_features = _reader(VisualizeFeaturesRequest, images=())
to_estimate_depth = _reader(EstimateMapsRequest, images=(), task="depth")
to_estimate_normals = _reader(EstimateMapsRequest, images=(), task="normals")


@cache
def enum_names(enum: EnumDescriptor) -> Mapping[int, str]:
    """Names of an enum's values in Python, such as `cls1` for `IMAGE_OUTPUT_CLS1`, by number."""
    unset, *values = enum.values
    prefix = unset.name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix).lower() for value in values}


def _writer(
    response: Callable[[], Any],
    items: str,
    fill: Callable[[Any, Any, Any], None],
    results: Callable[[Any], Iterable[Any]] | None = None,
) -> Writer:
    """A function that writes answers to responses of a type.

    Messages are filled in place: one that is added to another is copied, at every level.

    Args:
        response: Type of the response.
        items: Field of the response with an item for each one of the request; those with an error
            are empty.
        fill: Fills an item with its result and the answer.
        results: Results of an answer; None if they are its field of the same name.
    """
    results_of = results or attrgetter(items)

    def write(answer: Any, message: Any = None) -> Any:
        """Fill this response, or a new one."""
        message = _with_head(answer, response() if message is None else message)
        added, errors = getattr(message, items), answer.errors
        for result in results_of(answer):
            while len(added) in errors:
                added.add()
            fill(added.add(), result, answer)
        while len(added) in errors:
            added.add()
        return message

    return write


def _with_head(answer: ListResponse, message: Any) -> Any:
    """The message with the model, and the errors of single items in order."""
    message.model = answer.model
    for index, error in sorted(answer.errors.items()):
        message.errors.add(
            index=index, reason=error.code, message=error.message, field=error.param or ""
        )
    return message


def from_embed_texts(answer: EmbedTextsResponse, message: Any = None) -> Any:
    """Fill this response, or a new one."""
    message = _with_head(answer, embed_pb2.EmbedTextsResponse() if message is None else message)
    write_tensor(message.embeddings, *answer.in_places())
    return message


def _fill_embedding(item: Any, result: Any, answer: EmbedImagesResponse) -> None:
    outputs, scales = result
    for name, array in outputs.items():
        write_tensor(getattr(item, name), array, scales.get(name))


def _fill_mask(
    item: segment_pb2.Segmentation, mask: Segmentation, answer: SegmentImagesResponse
) -> None:
    item.background_share = mask.area_shares[0]
    rows = zip(answer.classes, mask.class_rows, strict=True)
    for k, (name, (share, score, confidence)) in enumerate(rows, start=1):
        item.classes.add(
            label=k,
            name=name,
            color=class_color(k),
            area_share=share,
            score=score,
            confidence=confidence,
        )
    write_tensor(item.labels, mask.wire_labels)
    if mask.scores_HW is not None:
        write_tensor(item.scores, mask.scores_HW)
    if mask.cosines_KHW is not None:
        write_tensor(item.cosines, mask.cosines_KHW)
    height, width = mask.labels_HW.shape
    counts = compress_counts([one.counts for one in mask.instances])
    for one, text in zip(mask.instances, counts, strict=True):
        added = item.instances.add(label=one.label, area=one.area, score=one.score)
        added.box.left, added.box.top, added.box.width, added.box.height = one.box
        added.mask.height, added.mask.width, added.mask.counts = height, width, text


def _fill_classes(
    item: classify_pb2.Classification, found: Classification, answer: ClassifyImagesResponse
) -> None:
    for label, probability, cosine in found.rows():
        name = answer.classes[label - 1]
        item.classes.add(label=label, name=name, probability=probability, cosine=cosine)


def _maps_writer(response: Callable[[], Any], field: str) -> Writer:
    """Of responses with one map per image, in this field of an item."""
    return _writer(response, "maps", lambda item, m, _: write_tensor(getattr(item, field), m))


from_embed_images = _writer(
    embed_pb2.EmbedImagesResponse,
    "embeddings",
    _fill_embedding,
    lambda answer: zip(answer.embeddings, answer.scales or repeat({}), strict=False),
)
from_segment_images = _writer(segment_pb2.SegmentImagesResponse, "segmentations", _fill_mask)
from_classify_images = _writer(
    classify_pb2.ClassifyImagesResponse, "classifications", _fill_classes
)
from_depth = _maps_writer(dense_pb2.EstimateDepthResponse, "depth")
from_normals = _maps_writer(dense_pb2.EstimateNormalsResponse, "normals")
from_visualize_features = _maps_writer(features_pb2.VisualizeFeaturesResponse, "features")


def from_model(info: ModelInfo) -> model_pb2.Model:
    """Describe a served model."""
    manifest, limits = info.manifest, info.limits
    scores = [
        model_pb2.Score(**{"item_count" if k == "count" else k: v for k, v in score.items()})
        for score in info.scores()
    ]
    return model_pb2.Model(
        name=manifest.name,
        outputs=[f"IMAGE_OUTPUT_{name.upper()}" for name in info.outputs if name != "text"],
        default_features=f"DENSE_FEATURES_{manifest.zero_shot.features.upper()}",
        default_templates=f"TEMPLATE_SET_{manifest.zero_shot.templates.upper()}",
        default_mode=f"SEGMENT_MODE_{manifest.zero_shot.mode.upper()}",
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
        **{name: getattr(manifest, name) for name in MANIFEST_FIELDS},
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
        if field.message_type is None:
            continue
        name = f"{path}.{field.name}" if path else field.name
        if field.message_type.GetOptions().map_entry:
            inside = [(f"{name}.{key}", item) for key, item in value.items()]
        elif field.is_repeated:
            inside = [(f"{name}[{index}]", item) for index, item in enumerate(value)]
        else:
            inside = [(name, value)]
        for place, item in inside:
            if isinstance(item, Message):
                refuse_unknown_fields(item, place)


def write_tensor(
    message: tensor_pb2.Tensor, array: NDArray[np.generic], scales: FloatArray | None = None
) -> None:
    """Fill a message with an array, and the scales of its rows if it is quantized."""
    message.shape.extend(array.shape)
    number: Any = tensor_pb2.DataType.Value(f"DATA_TYPE_{array.dtype.name.upper()}")
    message.data_type = number
    message.data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    if scales is not None:
        message.row_scales.extend(scales.ravel().tolist())
