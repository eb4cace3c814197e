"""REST response bodies in each media type: one `ResponseWriter` for each kind of answer.

Shape legend: B images, T texts, D width, K classes, H W pixels, h w patch grid.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, ClassVar, Final, Generic, TypeVar

import numpy as np
import orjson
import pybase64
from fastapi import Response
from numpy.typing import NDArray
from safetensors.numpy import save

from model.image_codec import ImageLimits, decode_image
from service.call import current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest, NotAcceptable
from service.images import image_errors
from service.messages import (
    ClassifyImagesResponse,
    EmbedImagesResponse,
    EmbedTextsResponse,
    EstimateMapsResponse,
    FloatArray,
    ItemErrors,
    ListResponse,
    Segmentation,
    SegmentImagesResponse,
    VisualizeFeaturesResponse,
)
from service.outputs.contours import class_polygons, class_runs, compress_counts
from service.outputs.features import encode_view_png
from service.outputs.maps import encode_depth_png, encode_millimetres_png, encode_normals_png
from service.outputs.masks import (
    MAX_PALETTE_CLASSES,
    class_color,
    encode_mask_png,
    encode_npy,
    encode_overlay_png,
)
from service.rest.errors import error_detail
from service.rest.requests import (
    COCO_FORMATS,
    ClassifyImagesOptions,
    DepthOptions,
    EmbedImagesOptions,
    EmbedTextsBody,
    Encoding,
    ImageInputs,
    MapOptions,
    Options,
    SegmentImagesOptions,
    VisualizeFeaturesOptions,
)

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
SAFETENSORS: Final = "application/octet-stream"
PNG: Final = "image/png"
# Larger answers are written in the pool. Below it, waking a thread and returning from it costs more
# than writing a few vectors.
MAX_INLINE_VALUES: Final = 2048

T = TypeVar("T")
Array = NDArray[np.generic]
AnswerT = TypeVar("AnswerT", bound=ListResponse)
OptionsT = TypeVar("OptionsT", bound=Options)


@lru_cache(256)
def choose_media(accept: str | None, offered: tuple[str, ...]) -> str:
    """Choose the response's media type by RFC 9110, section 12.5.1.

    Args:
        accept: The `Accept` header; None accepts everything.
        offered: In the server's order of preference, for wildcards and equal weights.

    Raises:
        NotAcceptable: The header accepts none of them.
    """
    ranges = [_parse_range(part) for part in (accept or "*/*").split(",") if part.strip()]
    best, best_weight = "", 0.0
    for media in offered:
        fitting = {"*/*", media, f"{media.split('/', maxsplit=1)[0]}/*"}
        matches = [(-name.count("*"), weight) for name, weight in ranges if name in fitting]
        # The most specific range decides: fewer wildcards come first.
        weight = max(matches)[1] if matches else 0.0
        if weight > best_weight:
            best, best_weight = media, weight
    if not best:
        raise NotAcceptable(f"Accept must allow one of {', '.join(offered)}.")
    return best


def _parse_range(part: str) -> tuple[str, float]:
    """A media range of an `Accept` header and its weight."""
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    weight = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                weight = 0.0
    return media, weight


@dataclass(frozen=True, slots=True)
class RestRequest(Generic[AnswerT, OptionsT]):
    """A request as it was read, and how to write its answer.

    Attributes:
        options: Its fields.
        images: Its encoded images.
        media: The media type of the response.
        writer: Writes the response.
    """

    options: OptionsT
    images: ImageInputs
    media: str
    writer: "ResponseWriter[AnswerT, OptionsT]"


async def respond(
    plane: DataPlane, request: RestRequest[AnswerT, OptionsT], answer: AnswerT
) -> Response:
    """Write the response to a request."""
    content = await write_content(
        plane,
        lambda: request.writer.write(answer, request, plane.image_limits),
        request.writer.num_values(answer),
    )
    return Response(content, media_type=request.media)


async def write_content(plane: DataPlane, write: Callable[[], T], num_values: int) -> T:
    """Run `write`, which is CPU work: in the pool unless the answer has few values."""
    with current_call.get().stage("post"):
        return write() if num_values <= MAX_INLINE_VALUES else await plane.offload(write)


class ResponseWriter(ABC, Generic[AnswerT, OptionsT]):
    """Writes one kind of answer in every media type that can hold it."""

    media_types: ClassVar[tuple[str, ...]] = (JSON, NPY, SAFETENSORS)

    def check(self, options: OptionsT, media: str, num_images: int) -> None:
        """Check, before any work, that the media type can hold the answer.

        Raises:
            InvalidRequest: It cannot; the message names one that can.
        """
        if options.partial and media in {PNG, NPY}:
            raise InvalidRequest(
                f"{media} cannot hold errors: accept application/json or "
                "application/octet-stream (safetensors), or omit partial.",
                param="partial",
            )

    def write(
        self, answer: AnswerT, request: RestRequest[AnswerT, OptionsT], limits: ImageLimits
    ) -> bytes:
        """The response body in the request's media type."""
        options = request.options
        if request.media == PNG:
            return self.png(answer, request, limits)
        if request.media == NPY:
            return encode_npy(self.npy(answer))
        errors = answer.errors if options.partial else None
        if request.media == JSON:
            return write_json(answer.model, self.entries(answer, options), errors)
        return write_safetensors(answer.model, self.tensors(answer, options), errors)

    @abstractmethod
    def num_values(self, answer: AnswerT) -> int:
        """About how many values the response holds."""

    @abstractmethod
    def entries(self, answer: AnswerT, options: OptionsT) -> list[dict[str, Any]]:
        """A JSON object for each image or text without an error."""

    @abstractmethod
    def columns(self, answer: AnswerT, options: OptionsT) -> Mapping[str, Sequence[Array]]:
        """Named arrays, each with an element for each image or text without an error."""

    def tensors(self, answer: AnswerT, options: OptionsT) -> dict[str, Array]:
        """The columns for safetensors: stacked, or `name.0`, `name.2` by index.

        By index where shapes differ and where items may have errors.
        """
        tensors: dict[str, Array] = {}
        for name, arrays in self.columns(answer, options).items():
            if not options.partial and len({a.shape for a in arrays}) == 1:
                tensors[name] = np.stack(arrays)
            else:
                tensors |= {
                    f"{name}.{index}": array
                    for index, array in zip(_good_indices(answer.errors), arrays, strict=False)
                }
        return tensors

    @abstractmethod
    def npy(self, answer: AnswerT) -> Array:
        """The one array of an npy file."""

    def png(
        self, answer: AnswerT, request: RestRequest[AnswerT, OptionsT], limits: ImageLimits
    ) -> bytes:
        """The one image as a PNG file."""
        raise NotImplementedError


class ImageEmbeddingWriter(ResponseWriter[EmbedImagesResponse, EmbedImagesOptions]):
    """Embeddings of images: [B, h, w, D] or [B, D]."""

    def check(self, options: EmbedImagesOptions, media: str, num_images: int) -> None:
        """Check also that npy holds one output."""
        if media == NPY and len(set(options.outputs)) > 1:
            raise InvalidRequest(
                "application/x-npy holds one array: request one output, or accept "
                "application/octet-stream (safetensors).",
                param="outputs",
            )
        super().check(options, media, num_images)

    def num_values(self, answer: EmbedImagesResponse) -> int:
        """Elements of all embeddings."""
        return sum(a.size for outputs in answer.embeddings for a in outputs.values())

    def entries(
        self, answer: EmbedImagesResponse, options: EmbedImagesOptions
    ) -> list[dict[str, Any]]:
        """The outputs of each image by name."""
        return [
            {name: encode_array(array, options.encoding) for name, array in outputs.items()}
            | _scales(scales, options.encoding)
            for outputs, scales in zip(answer.embeddings, _all_scales(answer), strict=True)
        ]

    def columns(
        self, answer: EmbedImagesResponse, options: EmbedImagesOptions
    ) -> Mapping[str, Sequence[Array]]:
        """The outputs, and the scales of int8 vectors as `cls1_scale`."""
        return _embedding_columns(answer)

    def npy(self, answer: EmbedImagesResponse) -> Array:
        """One output of all images."""
        arrays, *scales = _embedding_columns(answer).values()
        if scales:
            arrays = list(map(scaled_rows, arrays, *scales))
        if len({a.shape for a in arrays}) > 1:
            raise InvalidRequest(
                "The images have different grids, which one array cannot hold: use fit squash, "
                "or accept application/octet-stream (safetensors).",
                param="fit",
            )
        return np.stack(arrays)


def _all_scales(answer: EmbedImagesResponse) -> Sequence[Mapping[str, FloatArray]]:
    return answer.scales or ({},) * len(answer.embeddings)


def _embedding_columns(answer: EmbedImagesResponse) -> dict[str, list[Any]]:
    rows = [
        outputs | {f"{name}_scale": scale for name, scale in scales.items()}
        for outputs, scales in zip(answer.embeddings, _all_scales(answer), strict=True)
    ]
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


class TextEmbeddingWriter(ResponseWriter[EmbedTextsResponse, EmbedTextsBody]):
    """Embeddings of texts: [T, D], where safetensors has rows of zeros for errors."""

    def num_values(self, answer: EmbedTextsResponse) -> int:
        """Elements of all embeddings."""
        return answer.embeddings_TD.size

    def entries(self, answer: EmbedTextsResponse, options: EmbedTextsBody) -> list[dict[str, Any]]:
        """The embedding of each text."""
        encoding = options.encoding
        data = [{"embedding": encode_array(row_D, encoding)} for row_D in answer.embeddings_TD]
        if answer.scales_T is None:
            return data
        return [
            item | _scales({"embedding": scale}, encoding)
            for item, scale in zip(data, answer.scales_T, strict=True)
        ]

    def columns(
        self, answer: EmbedTextsResponse, options: EmbedTextsBody
    ) -> Mapping[str, Sequence[Array]]:
        """The embeddings, and the scales of int8 vectors."""
        rows_TD, scales_T = answer.in_places()
        columns: dict[str, Any] = {"embeddings": rows_TD}
        return columns if scales_T is None else columns | {"embeddings_scale": scales_T}

    def tensors(self, answer: EmbedTextsResponse, options: EmbedTextsBody) -> dict[str, Array]:
        """One matrix, since texts have embeddings of one size."""
        return {name: np.asarray(column) for name, column in self.columns(answer, options).items()}

    def npy(self, answer: EmbedTextsResponse) -> Array:
        """One matrix."""
        rows_TD, scales_T = answer.embeddings_TD, answer.scales_T
        return rows_TD if scales_T is None else scaled_rows(rows_TD, scales_T)


class ClassificationWriter(ResponseWriter[ClassifyImagesResponse, ClassifyImagesOptions]):
    """Classes of images, the best first; npy has probabilities [B, K] in the order requested."""

    def check(self, options: ClassifyImagesOptions, media: str, num_images: int) -> None:
        """Check also that npy gets the probabilities of all classes."""
        if media == NPY and options.top_k is not None:
            raise InvalidRequest(
                "application/x-npy holds the probabilities of all classes, in the order of the "
                "request: omit top_k, or accept application/json.",
                param="top_k",
            )
        super().check(options, media, num_images)

    def num_values(self, answer: ClassifyImagesResponse) -> int:
        """Label, probability and cosine of each class."""
        return sum(3 * one.labels_K.size for one in answer.classifications)

    def entries(
        self, answer: ClassifyImagesResponse, options: ClassifyImagesOptions
    ) -> list[dict[str, Any]]:
        """The classes of each image by name."""
        names = answer.classes
        return [
            {
                "classes": [
                    {"label": k, "name": names[k - 1], "probability": share, "cosine": cosine}
                    for k, share, cosine in one.rows()
                ]
            }
            for one in answer.classifications
        ]

    def columns(
        self, answer: ClassifyImagesResponse, options: ClassifyImagesOptions
    ) -> Mapping[str, Sequence[Array]]:
        """Labels, probabilities and cosines."""
        return {
            "labels": [one.labels_K for one in answer.classifications],
            "probabilities": [one.probabilities_K for one in answer.classifications],
            "cosines": [one.cosines_K for one in answer.classifications],
        }

    def npy(self, answer: ClassifyImagesResponse) -> Array:
        """Probabilities in the order of the request."""
        return np.stack(
            [one.probabilities_K[np.argsort(one.labels_K)] for one in answer.classifications]
        )


class _RasterWriter(ResponseWriter[AnswerT, OptionsT]):
    """Arrays with a value for each pixel; a PNG or npy file holds those of one image."""

    media_types = (JSON, NPY, SAFETENSORS, PNG)

    def check(self, options: OptionsT, media: str, num_images: int) -> None:
        """Check also that a file of one image is not requested for several."""
        if media in {PNG, NPY} and num_images > 1:
            raise InvalidRequest(f"{media} holds one image: send one image.", param="images")
        super().check(options, media, num_images)


class MaskWriter(_RasterWriter[SegmentImagesResponse, SegmentImagesOptions]):
    """Masks; in JSON as labels, or each class in a format of COCO."""

    def check(self, options: SegmentImagesOptions, media: str, num_images: int) -> None:
        """Check also the format, and the number of colours of a palette."""
        super().check(options, media, num_images)
        if media == PNG and options.format == "mask" and len(options.classes) > MAX_PALETTE_CLASSES:
            raise InvalidRequest(
                f"classes: {len(options.classes)} given, at most {MAX_PALETTE_CLASSES} fit the "
                "palette of a PNG; accept application/x-npy.",
                param="classes",
            )
        if media != PNG and options.format == "overlay":
            raise InvalidRequest("The format overlay needs Accept: image/png.", param="format")
        if media != JSON and options.format in COCO_FORMATS:
            raise InvalidRequest(
                f"The format {options.format} needs Accept: application/json.", param="format"
            )

    def num_values(self, answer: SegmentImagesResponse) -> int:
        """Pixels of all masks."""
        return sum(mask.labels_HW.size for mask in answer.segmentations)

    def entries(
        self, answer: SegmentImagesResponse, options: SegmentImagesOptions
    ) -> list[dict[str, Any]]:
        """The mask of each image, in the requested format."""
        return [_mask_entry(mask, answer.classes, options) for mask in answer.segmentations]

    def columns(
        self, answer: SegmentImagesResponse, options: SegmentImagesOptions
    ) -> Mapping[str, Sequence[Array]]:
        """Labels, and the scores if they were computed."""
        labels = [mask.wire_labels for mask in answer.segmentations]
        scores = [mask.scores_HW for mask in answer.segmentations if mask.scores_HW is not None]
        return {"labels": labels, "scores": scores} if scores else {"labels": labels}

    def npy(self, answer: SegmentImagesResponse) -> Array:
        """Labels of the one mask."""
        return answer.segmentations[0].wire_labels

    def png(
        self,
        answer: SegmentImagesResponse,
        request: RestRequest[SegmentImagesResponse, SegmentImagesOptions],
        limits: ImageLimits,
    ) -> bytes:
        """The labels with a palette, or the image overlaid with their colours."""
        labels_HW = answer.segmentations[0].labels_HW
        if request.options.format == "mask":
            return encode_mask_png(labels_HW)
        image = request.images[0]
        assert isinstance(image, bytes)
        with image_errors("images[0]"):
            pixels_HW3 = decode_image(image, limits)
        return encode_overlay_png(labels_HW, pixels_HW3)


def _mask_entry(
    mask: Segmentation, names: Sequence[str], options: SegmentImagesOptions
) -> dict[str, Any]:
    height, width = mask.labels_HW.shape
    background_share, *shares = mask.area_shares
    classes = [
        {"label": label, "name": name, "color": class_color(label), "area_share": share}
        for label, (name, share) in enumerate(zip(names, shares, strict=True), start=1)
    ]
    entry: dict[str, Any] = {
        "height": height,
        "width": width,
        "classes": classes,
        "background_share": background_share,
    }
    if options.format == "mask":
        entry["labels"] = encode_array(mask.wire_labels, options.encoding)
    else:
        for one, region in zip(classes, _coco_regions(mask, len(names), options), strict=True):
            one.update(region)
    if mask.scores_HW is not None:
        entry["scores"] = encode_array(mask.scores_HW, options.encoding)
    return entry


def _coco_regions(
    mask: Segmentation, num_classes: int, options: SegmentImagesOptions
) -> list[dict[str, Any]]:
    """Area, bounding box and outline of each class, named as in COCO's annotations."""
    runs = class_runs(mask.labels_HW, num_classes)
    if options.format == "polygons":
        outlines: list[Any] = class_polygons(mask.labels_HW, num_classes)
    else:
        counts = [run.counts for run in runs]
        numbers: list[Any] = compress_counts(counts) if options.format == "rle" else counts
        outlines = [{"size": mask.labels_HW.shape, "counts": n} for n in numbers]
    return [
        {"area": run.area, "bbox": run.box, "segmentation": outline}
        for run, outline in zip(runs, outlines, strict=True)
    ]


class FeatureWriter(_RasterWriter[VisualizeFeaturesResponse, VisualizeFeaturesOptions]):
    """Visualized features."""

    def num_values(self, answer: VisualizeFeaturesResponse) -> int:
        """Elements of all maps."""
        return sum(array.size for array in answer.maps)

    def entries(
        self, answer: VisualizeFeaturesResponse, options: VisualizeFeaturesOptions
    ) -> list[dict[str, Any]]:
        """The map of each image, and the colour and area of its groups."""
        return [
            {"height": array.shape[0], "width": array.shape[1]}
            | ({"groups": _groups(array)} if options.kind == "groups" else {})
            | {"features": encode_array(array, options.encoding)}
            for array in answer.maps
        ]

    def columns(
        self, answer: VisualizeFeaturesResponse, options: VisualizeFeaturesOptions
    ) -> Mapping[str, Sequence[Array]]:
        """The maps."""
        return {"features": answer.maps}

    def npy(self, answer: VisualizeFeaturesResponse) -> Array:
        """The one map."""
        return answer.maps[0]

    def png(
        self,
        answer: VisualizeFeaturesResponse,
        request: RestRequest[VisualizeFeaturesResponse, VisualizeFeaturesOptions],
        limits: ImageLimits,
    ) -> bytes:
        """The one map."""
        return encode_view_png(answer.maps[0], request.options.kind)


def _groups(labels_HW: NDArray[Any]) -> list[dict[str, Any]]:
    shares = np.bincount(labels_HW.ravel())[1:] / labels_HW.size
    return [
        {"label": label, "color": class_color(label), "area_share": share}
        for label, share in enumerate(shares.tolist(), start=1)
    ]


class MapWriter(_RasterWriter[EstimateMapsResponse, MapOptions]):
    """Depth, or surface normals."""

    def check(self, options: MapOptions, media: str, num_images: int) -> None:
        """Check also that only a PNG gets a format."""
        super().check(options, media, num_images)
        if media != PNG and isinstance(options, DepthOptions) and options.format is not None:
            raise InvalidRequest(
                f"The format {options.format} needs Accept: image/png. Other media types hold "
                "depth in metres, as float32.",
                param="format",
            )

    def num_values(self, answer: EstimateMapsResponse) -> int:
        """Elements of all maps."""
        return sum(array.size for array in answer.maps)

    def entries(self, answer: EstimateMapsResponse, options: MapOptions) -> list[dict[str, Any]]:
        """The map of each image, named by the task."""
        return [
            {"height": array.shape[0], "width": array.shape[1]}
            | {options.task: encode_array(array, options.encoding)}
            for array in answer.maps
        ]

    def columns(
        self, answer: EstimateMapsResponse, options: MapOptions
    ) -> Mapping[str, Sequence[Array]]:
        """The maps, named by the task."""
        return {options.task: answer.maps}

    def npy(self, answer: EstimateMapsResponse) -> Array:
        """The one map."""
        return answer.maps[0]

    def png(
        self,
        answer: EstimateMapsResponse,
        request: RestRequest[EstimateMapsResponse, MapOptions],
        limits: ImageLimits,
    ) -> bytes:
        """Millimetres or colours for depth, colours for normals."""
        (array,), options = answer.maps, request.options
        if not isinstance(options, DepthOptions):
            return encode_normals_png(array)
        return (encode_depth_png if options.format == "colors" else encode_millimetres_png)(array)


def write_json(model: str, entries: list[dict[str, Any]], errors: ItemErrors | None) -> bytes:
    """A list with an entry for each item without an error, and the errors unless None."""
    data = [{"index": i} | e for i, e in zip(_good_indices(errors or {}), entries, strict=False)]
    document: dict[str, Any] = {"object": "list", "model": model, "data": data}
    if errors is not None:
        document["errors"] = _item_errors(errors)
    return dump(document)


def write_safetensors(model: str, tensors: dict[str, Array], errors: ItemErrors | None) -> bytes:
    """A safetensors file with the model, and the errors unless None, in its metadata."""
    metadata = {"model": model}
    if errors is not None:
        metadata["errors"] = json.dumps(_item_errors(errors))
    # `save` copies memory as it lies, so an array in another order would be sent transposed.
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return bytes(save(contiguous, metadata=metadata))


def _good_indices(errors: ItemErrors) -> "filter[int]":
    """Indices in the request, from 0, of the items without an error."""
    return filter(lambda index: index not in errors, count())


def _item_errors(errors: ItemErrors) -> list[dict[str, Any]]:
    """Each error as the body that it has when it fails the whole request."""
    return [
        {"index": index, "error": error_detail(error)} for index, error in sorted(errors.items())
    ]


def _scales(scales: Mapping[str, FloatArray], encoding: Encoding) -> dict[str, Any]:
    """The scales of int8 vectors by the name of their array; empty for other vectors."""
    if not scales:
        return {}
    return {
        "scales": {
            name: encode_array(scale, encoding) if scale.ndim else float(scale)
            for name, scale in scales.items()
        }
    }


def scaled_rows(rows: Array, scales: FloatArray) -> Array:
    """Int8 rows and their scales as one array of records `scale`, `values`."""
    record = np.dtype([("scale", "<f4"), ("values", "i1", rows.shape[-1:])])
    records = np.empty(scales.shape, record)
    records["scale"], records["values"] = scales, rows
    return records


def encode_array(array: NDArray[np.generic], encoding: Encoding) -> Any:
    """An array for `dump`: nested lists, or base64 with dtype and shape."""
    if encoding == "list":
        # orjson writes arrays itself, with as many digits as the type needs.
        return np.ascontiguousarray(array)
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    data = pybase64.b64encode_as_string(little.data.cast("B"))
    return {"dtype": array.dtype.name, "shape": array.shape, "data": data}


def dump(document: dict[str, Any]) -> bytes:
    """JSON in UTF-8; NaN and infinities become null, since JSON has no form for them."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
