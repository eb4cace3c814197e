"""Protobuf messages to messages of the data plane, and back; the only module that knows both."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, cast

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
    item_error_pb2,
    model_pb2,
    segment_pb2,
    tensor_pb2,
    text_pb2,
)
from service.messages import (
    MANIFEST_FIELDS,
    ClassExample,
    ClassifyImagesRequest,
    ClassifyImagesResponse,
    EmbedImagesRequest,
    EmbedImagesResponse,
    EmbedTextsRequest,
    EmbedTextsResponse,
    EstimateMapsRequest,
    EstimateMapsResponse,
    FloatArray,
    ItemErrors,
    ModelInfo,
    PromptPool,
    RunLengths,
    Segmentation,
    SegmentClass,
    SegmentImagesRequest,
    SegmentImagesResponse,
    VisualizeFeaturesRequest,
    VisualizeFeaturesResponse,
)
from service.outputs.colours import class_color
from service.outputs.run_lengths import compress_counts

T = TypeVar("T")
M = TypeVar("M")
R = TypeVar("R")
BOX_FIELDS = ("left", "top", "width", "height")
DATA_TYPES: Mapping[str, tensor_pb2.DataType] = {
    "float32": tensor_pb2.DATA_TYPE_FLOAT32,
    "uint16": tensor_pb2.DATA_TYPE_UINT16,
    "float16": tensor_pb2.DATA_TYPE_FLOAT16,
    "int8": tensor_pb2.DATA_TYPE_INT8,
}


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
        given = {field.name: _read_field(field, value) for field, value in request.ListFields()}
        return message(**{**required, **given})

    return read


to_embed_images = _reader(EmbedImagesRequest, images=())
to_embed_texts = _reader(EmbedTextsRequest, texts=())
to_segment_images = _reader(SegmentImagesRequest, images=(), classes=(), include_class_scores=True)
to_classify_images = _reader(ClassifyImagesRequest, images=(), classes=())
to_visualize_features = _reader(VisualizeFeaturesRequest, images=())
to_estimate_depth = _reader(EstimateMapsRequest, images=(), task="depth")
to_estimate_normals = _reader(EstimateMapsRequest, images=(), task="normals")


def _read_field(field: FieldDescriptor, value: Any) -> Any:
    """The Python value of a field that is set."""
    match field.name:
        case "images":
            value = tuple(image.encoded for image in value)
        case "texts":
            value = tuple(value)
        case "classes" | "background_classes":
            value = tuple(
                SegmentClass(
                    name=c.name,
                    prompts=tuple(c.prompts),
                    pool=_read_pool(c.pool),
                    examples=tuple(_read_example(example) for example in c.examples),
                )
                for c in value
            )
        case "templates":
            value = _read_templates(value)
        case "outputs":
            # The data plane refuses an unknown one with its index.
            names = enum_names(embed_pb2.ImageOutput.DESCRIPTOR)
            value = tuple(names.get(number, str(number)) for number in value)
        case name if field.enum_type is not None:
            param = "dtype" if name == "vector_type" else name
            value = _read_enum(field.enum_type, value, param)
    return value


def _read_example(example: segment_pb2.ClassExample) -> ClassExample:
    point, box, mask = example.point, example.box, example.mask
    match example.WhichOneof("region"):
        case "point":
            return ClassExample(image=example.image, point=(point.x, point.y))
        case "box":
            return ClassExample(image=example.image, box=(box.left, box.top, box.width, box.height))
        case "mask":
            runs = RunLengths(size_hw=(mask.height, mask.width), counts=mask.counts)
            return ClassExample(image=example.image, mask=runs)
    return ClassExample(image=example.image)


def _read_pool(value: int) -> PromptPool:
    pool = segment_pb2.PromptPool.DESCRIPTOR
    return cast("PromptPool", _read_enum(pool, value, "pool")) if value else "mean"


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


@cache
def enum_names(enum: EnumDescriptor) -> Mapping[int, str]:
    """Names of an enum's values in Python, such as `cls1` for `IMAGE_OUTPUT_CLS1`, by number."""
    unset, *values = enum.values
    prefix = unset.name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix).lower() for value in values}


def from_embed_images(answer: EmbedImagesResponse) -> embed_pb2.EmbedImagesResponse:
    """Convert an answer."""
    message = embed_pb2.EmbedImagesResponse(model=answer.model, errors=item_errors(answer.errors))
    scales = answer.scales or ({},) * len(answer.embeddings)
    rows = zip(answer.embeddings, scales, strict=True)
    for embedding, (outputs, factors) in in_places(message.embeddings, rows, answer.errors):
        for name, array in outputs.items():
            write_tensor(getattr(embedding, name), array, factors.get(name))
    return message


def from_embed_texts(answer: EmbedTextsResponse) -> embed_pb2.EmbedTextsResponse:
    """Convert an answer."""
    rows_TD, scales_T = answer.in_places()
    return embed_pb2.EmbedTextsResponse(
        model=answer.model, embeddings=tensor(rows_TD, scales_T), errors=item_errors(answer.errors)
    )


def from_segment_images(answer: SegmentImagesResponse) -> segment_pb2.SegmentImagesResponse:
    """Convert an answer."""
    message = segment_pb2.SegmentImagesResponse(
        model=answer.model, errors=item_errors(answer.errors)
    )
    places = in_places(message.segmentations, answer.segmentations, answer.errors)
    for segmentation, mask in places:
        _write_mask(segmentation, mask, answer.classes)
    return message


def _write_mask(
    message: segment_pb2.Segmentation, mask: Segmentation, names: Sequence[str]
) -> None:
    message.background_share, *shares = mask.area_shares
    rows = zip(names, shares, mask.class_scores, strict=True)
    for k, (name, share, score) in enumerate(rows, start=1):
        message.classes.add(label=k, name=name, color=class_color(k), area_share=share, score=score)
    write_tensor(message.labels, mask.wire_labels)
    if mask.scores_HW is not None:
        write_tensor(message.scores, mask.scores_HW)
    if mask.cosines_KHW is not None:
        write_tensor(message.cosines, mask.cosines_KHW)
    message.instances.extend(_instances(mask))


def _instances(mask: Segmentation) -> list[segment_pb2.Instance]:
    height, width = mask.labels_HW.shape
    counts = [one.counts for one in mask.instances]
    return [
        segment_pb2.Instance(
            label=one.label,
            area=one.area,
            box=segment_pb2.Box(**dict(zip(BOX_FIELDS, one.box, strict=True))),
            score=one.score,
            mask=segment_pb2.RunLengths(height=height, width=width, counts=text),
        )
        for one, text in zip(mask.instances, compress_counts(counts), strict=True)
    ]


def from_classify_images(answer: ClassifyImagesResponse) -> classify_pb2.ClassifyImagesResponse:
    """Convert an answer."""
    message = classify_pb2.ClassifyImagesResponse(
        model=answer.model, errors=item_errors(answer.errors)
    )
    places = in_places(message.classifications, answer.classifications, answer.errors)
    for classification, found in places:
        for label, probability, cosine in found.rows():
            classification.classes.add(
                label=label,
                name=answer.classes[label - 1],
                probability=probability,
                cosine=cosine,
            )
    return message


def _maps_writer(
    response: Callable[..., R], field: str
) -> Callable[[EstimateMapsResponse | VisualizeFeaturesResponse], R]:
    """A function that converts answers to responses with one map per image, in this field."""

    def write(answer: EstimateMapsResponse | VisualizeFeaturesResponse) -> R:
        message: Any = response(model=answer.model, errors=item_errors(answer.errors))
        for item, array in in_places(message.maps, answer.maps, answer.errors):
            write_tensor(getattr(item, field), array)
        written: R = message
        return written

    return write


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


def in_places(messages: Any, results: Iterable[T], errors: ItemErrors) -> Iterator[tuple[Any, T]]:
    """Add a message for each item of a request, and give those without an error with their results.

    They are filled in place: a message that is added to another is copied, at every level.
    """
    for result in results:
        while len(messages) in errors:
            messages.add()
        yield messages.add(), result
    while len(messages) in errors:
        messages.add()


def item_errors(errors: ItemErrors) -> list[item_error_pb2.ItemError]:
    """The errors of single items, in order."""
    return [
        item_error_pb2.ItemError(
            index=index, reason=error.code, message=error.message, field=error.param or ""
        )
        for index, error in sorted(errors.items())
    ]
