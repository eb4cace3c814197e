"""REST response bodies in each media type: a table with one `ResponseWriter` for each answer.

Shape legend: B images, T texts, D width, K classes, H W pixels, h w patch grid.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from itertools import chain, count
from typing import Any, Final, Generic, TypeVar

import numpy as np
import orjson
import pybase64
from fastapi import Response
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from model.image_codec import ImageLimits, decode_image
from model.winner_map import count_labels
from service.call import AnswerEncoding, current_call
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
from service.outputs.colours import MAX_PALETTE_CLASSES, class_color
from service.outputs.features import encode_view_png
from service.outputs.maps import encode_depth_png, encode_millimetres_png, encode_normals_png
from service.outputs.masks import (
    encode_heatmap_png,
    encode_labels_png,
    encode_mask_png,
    encode_overlay_png,
)
from service.outputs.polygons import Polygon, class_polygons, simplify
from service.outputs.run_lengths import class_runs, compress_counts
from service.rest.errors import error_detail
from service.rest.requests import (
    COCO_FORMATS,
    ClassifyImagesBody,
    DepthBody,
    EmbedImagesBody,
    EmbedTextsBody,
    Encoding,
    ImageInputs,
    MapBody,
    Options,
    SegmentImagesBody,
    VisualizeFeaturesBody,
)

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
SAFETENSORS: Final = "application/octet-stream"
PNG: Final = "image/png"
# Larger answers are written in the pool. Below it, waking a thread and returning from it costs more
# than writing a few vectors.
MAX_INLINE_VALUES: Final = 2048
PIECE_BYTES: Final = 256 * 1024
MAX_DIMS: Final = 2
SAFETENSORS_TYPES: Final = {
    "float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8", "uint16": "U16"
}  # fmt: skip

T = TypeVar("T")
Array = NDArray[np.generic]
# A part of a response body: its bytes, or an array that is contiguous and little-endian.
Piece = bytes | Array
# The place of a large text in a document. JSON has no such byte: strings have it escaped.
PLACE: Final = b"\0"
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
class RestRequest:
    """A request as it was read: its options, its encoded images, and the response's media type."""

    options: Any
    images: ImageInputs
    media: str


async def respond(
    plane: DataPlane,
    writer: "ResponseWriter[AnswerT, OptionsT]",
    answer: AnswerT,
    request: RestRequest,
) -> Response:
    """Write the response to a request."""
    write = partial(writer.write, answer, request, plane.image_limits)
    pieces = await write_content(plane, write, writer.num_values(answer))
    if len(pieces) == 1 and isinstance(pieces[0], bytes) and len(pieces[0]) <= PIECE_BYTES:
        return Response(pieces[0], media_type=request.media)
    return PiecedResponse(pieces, request.media)


class PiecedResponse(Response):
    """A response that is sent piece by piece, each once the client has read most of those before.

    An array is a piece as it lies in memory. In one piece, a large body would wait in the
    connection's buffer while the server takes the request for finished.
    """

    def __init__(self, pieces: Sequence[Piece], media_type: str) -> None:
        num_bytes = sum([len(p) if isinstance(p, bytes) else p.nbytes for p in pieces])
        super().__init__(headers={"content-length": str(num_bytes)}, media_type=media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        for piece in self._pieces:
            data = piece if isinstance(piece, bytes) else piece.reshape(-1).view(np.uint8)
            for begin in range(0, len(data), PIECE_BYTES):
                body = bytes(data[begin : begin + PIECE_BYTES])
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def write_content(plane: DataPlane, write: Callable[[], T], num_values: int) -> T:
    """Run `write`, which is CPU work: in the pool unless the answer has few values."""
    with current_call.get().stage("post"):
        return write() if num_values <= MAX_INLINE_VALUES else await plane.offload(write)


# No slots: Python 3.11 cannot call a subscripted generic class that has them.
@dataclass(frozen=True, kw_only=True)
class ResponseWriter(Generic[AnswerT, OptionsT]):
    """How one kind of answer is written in each media type.

    Attributes:
        num_values: About how many values the response holds.
        entries: For JSON: an object for each image or text without an error.
        columns: For safetensors: named arrays, with an element for each image or text without an
            error; or one whole matrix.
        npy: The one array of an npy file. Default: the first one of the columns.
        png: The one PNG file; None if there is no such form. An answer with this form has a value
            for each pixel, and its PNG and npy files hold one image.
        check_options: Refuses options that a media type cannot hold.
    """

    num_values: Callable[[AnswerT], int]
    entries: Callable[[AnswerT, OptionsT], list[dict[str, Any]]]
    columns: Callable[[AnswerT, OptionsT], Mapping[str, Sequence[Array] | Array]]
    npy: Callable[[AnswerT], Array] | None = None
    png: Callable[[AnswerT, RestRequest, ImageLimits], bytes] | None = None
    check_options: Callable[[OptionsT, str], None] = lambda options, media: None

    @property
    def media_types(self) -> tuple[str, ...]:
        """Media types of the response, in order of preference."""
        return (JSON, NPY, SAFETENSORS) if self.png is None else (JSON, NPY, SAFETENSORS, PNG)

    def check(self, options: OptionsT, media: str, num_images: int) -> None:
        """Check, before any work, that the media type can hold the answer.

        Raises:
            InvalidRequest: It cannot; the message names one that can.
        """
        if self.png is not None and media in {PNG, NPY} and num_images > 1:
            raise InvalidRequest(f"{media} holds one image: send one image.", param="images")
        self.check_options(options, media)
        if options.partial and media in {PNG, NPY}:
            raise InvalidRequest(
                f"{media} cannot hold errors: accept application/json or "
                "application/octet-stream (safetensors), or omit partial.",
                param="partial",
            )

    def answer_encoding(self, options: OptionsT, media: str) -> AnswerEncoding:
        """How arrays are written, for the memory of the answer."""
        layout = vars(options).get("format")  # pydantic's `getattr` fails slowly
        if media == PNG:
            return "overlay" if layout in DRAWN_FORMATS else "png"
        if media != JSON:
            return "bytes"
        return "outlines" if layout in COCO_FORMATS else options.encoding

    def write(self, answer: AnswerT, request: RestRequest, limits: ImageLimits) -> list[Piece]:
        """The pieces of the response body in the request's media type. CPU work."""
        options, media = request.options, request.media
        if media == PNG and self.png is not None:
            return [self.png(answer, request, limits)]
        errors = answer.errors if options.partial else None
        if media == JSON:
            return write_json(answer.model, self.entries(answer, options), errors)
        columns = self.columns(answer, options)
        if media == SAFETENSORS:
            return write_safetensors(answer.model, columns, errors)
        return write_npy(self.npy(answer) if self.npy else next(iter(columns.values()))[0])


def _check_embedding(options: EmbedImagesBody, media: str) -> None:
    if media == NPY and len(set(options.outputs)) > 1:
        raise InvalidRequest(
            "application/x-npy holds one array: request one output, or accept "
            "application/octet-stream (safetensors).",
            param="outputs",
        )


def _embedding_entries(answer: EmbedImagesResponse, encoding: Encoding) -> list[dict[str, Any]]:
    rows = [
        {name: encode_array(array, encoding) for name, array in outputs.items()}
        for outputs in answer.embeddings
    ]
    for row, scales in zip(rows, answer.scales, strict=False):  # none but with int8
        row.update(_scales(scales, encoding))
    return rows


def _embedding_columns(answer: EmbedImagesResponse) -> dict[str, list[Any]]:
    all_scales = answer.scales or ({},) * len(answer.embeddings)
    rows = [
        outputs | {f"{name}_scale": scale for name, scale in scales.items()}
        for outputs, scales in zip(answer.embeddings, all_scales, strict=True)
    ]
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _one_embedding(answer: EmbedImagesResponse) -> Array:
    arrays, *scales = _embedding_columns(answer).values()
    if scales:
        arrays = list(map(scaled_rows, arrays, *scales))
    if len({a.shape for a in arrays}) > 1:
        raise InvalidRequest(
            "The images have different grids, which one array cannot hold: use fit squash, or "
            "accept application/octet-stream (safetensors).",
            param="fit",
        )
    return np.stack(arrays)


# Embeddings of images: [B, h, w, D] or [B, D].
IMAGE_EMBEDDINGS: Final = ResponseWriter[EmbedImagesResponse, EmbedImagesBody](
    check_options=_check_embedding,
    num_values=lambda answer: sum([a.size for row in answer.embeddings for a in row.values()]),
    entries=lambda answer, options: _embedding_entries(answer, options.encoding),
    columns=lambda answer, options: _embedding_columns(answer),
    npy=_one_embedding,
)


def _text_entries(answer: EmbedTextsResponse, options: EmbedTextsBody) -> list[dict[str, Any]]:
    encoding = options.encoding
    data = [{"embedding": encode_array(row_D, encoding)} for row_D in answer.embeddings_TD]
    for item, scale in zip(data, () if answer.scales_T is None else answer.scales_T, strict=False):
        item.update(_scales({"embedding": scale}, encoding))
    return data


def _text_columns(answer: EmbedTextsResponse) -> dict[str, Array]:
    rows_TD, scales_T = answer.in_places()
    columns: dict[str, Array] = {"embeddings": rows_TD}
    return columns if scales_T is None else columns | {"embeddings_scale": scales_T}


# Embeddings of texts: [T, D], where safetensors has rows of zeros for errors.
TEXT_EMBEDDINGS: Final = ResponseWriter[EmbedTextsResponse, EmbedTextsBody](
    num_values=lambda answer: answer.embeddings_TD.size,
    entries=_text_entries,
    columns=lambda answer, options: _text_columns(answer),
    npy=lambda answer: (
        answer.embeddings_TD
        if answer.scales_T is None
        else scaled_rows(answer.embeddings_TD, answer.scales_T)
    ),
)


def _check_classification(options: ClassifyImagesBody, media: str) -> None:
    if media == NPY and options.top_k is not None:
        raise InvalidRequest(
            "application/x-npy holds the probabilities of all classes, in the order of the "
            "request: omit top_k, or accept application/json.",
            param="top_k",
        )


# Classes of images, the best first; npy has probabilities [B, K] in the order of the request.
CLASSES: Final = ResponseWriter[ClassifyImagesResponse, ClassifyImagesBody](
    check_options=_check_classification,
    num_values=lambda answer: sum(3 * one.labels_K.size for one in answer.classifications),
    entries=lambda answer, options: [
        {
            "classes": [
                {"label": k, "name": answer.classes[k - 1], "probability": share, "cosine": cosine}
                for k, share, cosine in one.rows()
            ]
        }
        for one in answer.classifications
    ],
    columns=lambda answer, options: {
        "labels": [one.labels_K for one in answer.classifications],
        "probabilities": [one.probabilities_K for one in answer.classifications],
        "cosines": [one.cosines_K for one in answer.classifications],
    },
    npy=lambda answer: np.stack(
        [one.probabilities_K[np.argsort(one.labels_K)] for one in answer.classifications]
    ),
)


PNG_FORMATS: Final = {"labels", "overlay", "heatmap"}
# Of PNG files: drawn over the image.
DRAWN_FORMATS: Final = {"overlay", "heatmap"}


def _check_palette(classes: Sequence[object]) -> None:
    if len(classes) > MAX_PALETTE_CLASSES:
        raise InvalidRequest(
            f"classes: {len(classes)} given, at most {MAX_PALETTE_CLASSES} fit the palette of a "
            "PNG; use format labels, or accept application/x-npy.",
            param="classes",
        )


def _check_one_class(classes: Sequence[object]) -> None:
    if len(classes) > 1:
        raise InvalidRequest(
            f"The format heatmap shows one class, not {len(classes)}: name one, or request "
            "include_scores=all as safetensors.",
            param="classes",
        )


def _check_mask(options: SegmentImagesBody, media: str) -> None:
    if media == PNG and options.format == "mask":
        _check_palette(options.classes)
    if media != PNG and options.format in PNG_FORMATS:
        raise InvalidRequest(
            f"The format {options.format} needs Accept: image/png.", param="format"
        )
    if media != JSON and options.format in COCO_FORMATS:
        raise InvalidRequest(
            f"The format {options.format} needs Accept: application/json.", param="format"
        )
    if media != JSON and options.include_instances:
        raise InvalidRequest(
            "include_instances needs Accept: application/json.", param="include_instances"
        )
    if media not in {JSON, SAFETENSORS} and options.include_scores:
        raise InvalidRequest(
            f"include_scores needs Accept: application/json or {SAFETENSORS} (safetensors).",
            param="include_scores",
        )
    if options.format in DRAWN_FORMATS and options.size != "image":
        raise InvalidRequest(f"The format {options.format} needs size image.", param="size")
    if options.format == "heatmap":
        _check_one_class(options.classes)
    if options.tolerance and options.format != "polygons":
        raise InvalidRequest("tolerance needs format polygons.", param="tolerance")


def _mask_columns(answer: SegmentImagesResponse) -> dict[str, Sequence[Array]]:
    masks = answer.segmentations
    columns: dict[str, Sequence[Array]] = {"labels": [mask.wire_labels for mask in masks]}
    if scores := [mask.scores_HW for mask in masks if mask.scores_HW is not None]:
        columns["scores"] = scores
    if cosines := [mask.cosines_KHW for mask in masks if mask.cosines_KHW is not None]:
        columns["cosines"] = cosines
    return columns


def _mask_png(
    answer: SegmentImagesResponse,
    request: RestRequest,
    limits: ImageLimits,
) -> bytes:
    mask = answer.segmentations[0]
    labels_HW = mask.labels_HW
    if request.options.format == "labels":
        return encode_labels_png(labels_HW)
    if request.options.format == "mask":
        # The request may have named a head, whose classes are known only now.
        _check_palette(answer.classes)
        return encode_mask_png(labels_HW)
    if request.options.format == "heatmap":
        _check_one_class(answer.classes)
    image = request.images[0]
    assert isinstance(image, bytes)
    with image_errors("images[0]"):
        pixels_HW3 = decode_image(image, limits)
    if request.options.format == "overlay":
        return encode_overlay_png(labels_HW, pixels_HW3)
    assert mask.cosines_KHW is not None
    return encode_heatmap_png(mask.cosines_KHW[0], pixels_HW3)


def _mask_entry(
    mask: Segmentation, names: Sequence[str], options: SegmentImagesBody
) -> dict[str, Any]:
    height, width = mask.labels_HW.shape
    background_share, *shares = mask.area_shares
    rows = zip(names, shares, mask.class_scores, strict=True)
    classes: list[dict[str, Any]] = [
        {
            "label": label,
            "name": name,
            "color": class_color(label),
            "area_share": share,
            "score": score,
        }
        for label, (name, share, score) in enumerate(rows, start=1)
    ]
    entry: dict[str, Any] = {
        "height": height,
        "width": width,
        "classes": classes,
        "background_share": background_share,
    }
    if options.format == "mask":
        # As text the numbers of both types are the same.
        labels = mask.labels_HW if options.encoding == "list" else mask.wire_labels
        entry["labels"] = encode_array(labels, options.encoding)
    polygons: list[list[Polygon]] = []
    if options.format == "polygons":
        polygons = class_polygons(mask.labels_HW, len(names))
    if options.format in COCO_FORMATS:
        runs = class_runs(mask.labels_HW, len(names))
        outlines = [[simplify(p, options.tolerance) for p in own] for own in polygons] or (
            _run_lengths([run.counts for run in runs], mask, options)
        )
        for one, run, outline in zip(classes, runs, outlines, strict=True):
            one.update(area=run.area, bbox=run.box, segmentation=outline)
    if options.include_instances:
        entry["instances"] = _instances(mask, options, polygons)
    if mask.scores_HW is not None:
        entry["scores"] = encode_array(mask.scores_HW, options.encoding)
    if mask.cosines_KHW is not None:
        entry["cosines"] = encode_array(mask.cosines_KHW, options.encoding)
    return entry


def _instances(
    mask: Segmentation, options: SegmentImagesBody, polygons: Sequence[Sequence[Polygon]]
) -> list[dict[str, Any]]:
    """The instances, each with its outline."""
    outlines = _run_lengths([one.counts for one in mask.instances], mask, options)
    if options.format == "polygons":
        # A polygon is a connected region too; both begin at the uppermost of its leftmost pixels.
        height = mask.labels_HW.shape[0]
        by_start = {
            (label, x * height + y): [x, y, *rest]
            for label, own in enumerate(polygons, start=1)
            for x, y, *rest in own
        }
        outlines = [
            [simplify(by_start[one.label, int(one.counts[0])], options.tolerance)]
            for one in mask.instances
        ]
    return [
        {
            "label": one.label,
            "area": one.area,
            "bbox": one.box,
            "score": one.score,
            "segmentation": outline,
        }
        for one, outline in zip(mask.instances, outlines, strict=True)
    ]


def _run_lengths(
    counts: list[NDArray[np.int64]], mask: Segmentation, options: SegmentImagesBody
) -> list[Any]:
    """Run lengths as COCO's objects: numbers if requested, else compressed."""
    numbers: list[Any] = counts if options.format == "rle_counts" else compress_counts(counts)
    return [{"size": mask.labels_HW.shape, "counts": n} for n in numbers]


# Masks; in JSON as labels, or each class in a format of COCO.
MASKS: Final = ResponseWriter[SegmentImagesResponse, SegmentImagesBody](
    check_options=_check_mask,
    num_values=lambda answer: sum(
        mask.labels_HW.size + (0 if mask.cosines_KHW is None else mask.cosines_KHW.size)
        for mask in answer.segmentations
    ),
    entries=lambda answer, options: [
        _mask_entry(mask, answer.classes, options) for mask in answer.segmentations
    ],
    columns=lambda answer, options: _mask_columns(answer),
    png=_mask_png,
)


def _map_entry(name: str, array: NDArray[Any], encoding: Encoding) -> dict[str, Any]:
    height, width = array.shape[:2]
    return {"height": height, "width": width, name: encode_array(array, encoding)}


def _groups(labels_HW: NDArray[Any]) -> list[dict[str, Any]]:
    shares = count_labels(labels_HW, int(labels_HW.max()) + 1)[1:] / labels_HW.size
    return [
        {"label": label, "color": class_color(label), "area_share": share}
        for label, share in enumerate(shares.tolist(), start=1)
    ]


# Visualized features.
FEATURES: Final = ResponseWriter[VisualizeFeaturesResponse, VisualizeFeaturesBody](
    num_values=lambda answer: sum(array.size for array in answer.maps),
    entries=lambda answer, options: [
        ({"groups": _groups(array)} if options.kind == "groups" else {})
        | _map_entry("features", array, options.encoding)
        for array in answer.maps
    ],
    columns=lambda answer, options: {"features": answer.maps},
    png=lambda answer, request, limits: encode_view_png(answer.maps[0], request.options.kind),
)


def _check_map(options: MapBody, media: str) -> None:
    if media != PNG and isinstance(options, DepthBody) and options.format is not None:
        raise InvalidRequest(
            f"The format {options.format} needs Accept: image/png. Other media types hold depth in "
            "metres, as float32.",
            param="format",
        )


def _map_png(array: FloatArray, options: MapBody) -> bytes:
    if not isinstance(options, DepthBody):
        return encode_normals_png(array)
    return (encode_depth_png if options.format == "colors" else encode_millimetres_png)(array)


# Depth, or surface normals.
MAPS: Final = ResponseWriter[EstimateMapsResponse, MapBody](
    check_options=_check_map,
    num_values=lambda answer: sum(array.size for array in answer.maps),
    entries=lambda answer, options: [
        _map_entry(options.task, array, options.encoding) for array in answer.maps
    ],
    columns=lambda answer, options: {options.task: answer.maps},
    png=lambda answer, request, limits: _map_png(answer.maps[0], request.options),
)


def write_json(model: str, entries: list[dict[str, Any]], errors: ItemErrors | None) -> list[Piece]:
    """A list with an entry for each item without an error, and the errors unless None."""
    indices = _good_indices(errors) if errors else count()
    data = [{"index": i} | e for i, e in zip(indices, entries, strict=False)]
    document: dict[str, Any] = {"object": "list", "model": model, "data": data}
    if errors is not None:
        document["errors"] = _item_errors(errors)
    return dump_pieces(document)


def write_safetensors(
    model: str, columns: Mapping[str, Sequence[Array] | Array], errors: ItemErrors | None
) -> list[Piece]:
    """A safetensors file with the model, and the errors unless None, in its metadata.

    Each column is stacked, or split into `name.0`, `name.2` by index where shapes differ and where
    items may have errors. The library would hold the arrays twice more, which for a mask with
    scores is most of its memory.

    Source: the format's description in github.com/huggingface/safetensors.
    """
    # The arrays of each tensor, one after the other, and its shape.
    tensors: dict[str, tuple[Sequence[Array], tuple[int, ...]]] = {}
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            tensors[name] = [column], column.shape
        elif errors is None and len({array.shape for array in column}) == 1:
            tensors[name] = column, (len(column), *column[0].shape)
        else:
            indices = _good_indices(errors or {})
            one_each = zip(indices, column, strict=False)
            tensors |= {f"{name}.{i}": ([array], array.shape) for i, array in one_each}
    metadata = {"model": model}
    if errors is not None:
        metadata["errors"] = json.dumps(_item_errors(errors))
    header: dict[str, Any] = {"__metadata__": metadata}
    pieces: list[Piece] = []
    end = 0
    # Types of more bytes first, as the library orders them, so that every tensor is aligned.
    for name, (arrays, shape) in sorted(tensors.items(), key=lambda t: -t[1][0][0].itemsize):
        begin, end = end, end + sum(array.nbytes for array in arrays)
        kind = SAFETENSORS_TYPES[arrays[0].dtype.name]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": (begin, end)}
        pieces += map(little_endian, arrays)
    head = orjson.dumps(header)
    head += b" " * (-len(head) % 8)
    return [len(head).to_bytes(8, "little") + head, *pieces]


def write_npy(array: Array) -> list[Piece]:
    """An npy file of one array. `np.save` would hold all its bytes next to the array."""
    stream = BytesIO()
    piece = little_endian(array)
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(piece))
    return [stream.getvalue(), piece]


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
    """An array for `dump_pieces`: nested lists, or base64 with dtype and shape."""
    if encoding == "list":
        # orjson writes arrays itself, with as many digits as the type needs. For arrays of short
        # rows it takes four times the memory of the text, so these are written row by row; into one
        # text, because the heap keeps the pages of many small ones after they are freed.
        if array.ndim > MAX_DIMS and array.size > MAX_INLINE_VALUES:
            rows = BytesIO()
            for row in array:
                rows.write(b"," if rows.tell() else b"[")
                rows.write(dump(encode_array(row, encoding)))
            rows.write(b"]")
            return LargeText(rows.getvalue(), PLACE)
        return np.ascontiguousarray(array)
    text = pybase64.b64encode(little_endian(array).data.cast("B"))
    data = LargeText(text, b'"%b"' % PLACE) if array.size > MAX_INLINE_VALUES else text.decode()
    return {"dtype": array.dtype.name, "shape": array.shape, "data": data}


def little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """The array in row-major memory with little-endian elements; a copy only if needed."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


@dataclass(frozen=True, slots=True)
class LargeText:
    """A part of a JSON document that is not copied into it: the text, and what stands there."""

    text: bytes
    place: bytes


def dump_pieces(document: Any) -> list[Piece]:
    """JSON as `dump` writes it, in pieces: each `LargeText` is one, else it would be held twice."""
    texts: list[bytes] = []

    def leave_out(part: LargeText) -> orjson.Fragment:
        texts.append(part.text)
        return orjson.Fragment(part.place)

    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_DATACLASS
    frame = orjson.dumps(document, leave_out, options)
    if not texts:
        return [frame]
    first, *others = frame.split(PLACE)
    return [first, *chain.from_iterable(zip(texts, others, strict=True))]


def dump(document: Any) -> bytes:
    """JSON in UTF-8; NaN and infinities become null, since JSON has no form for them."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
