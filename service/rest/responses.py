"""REST response bodies in each media type: a table with one `ResponseWriter` for each answer.

Shape legend: B images, T texts, D width, K classes, H W pixels, h w patch grid.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from service import messages
from service.call import AnswerEncoding, current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest, NotAcceptable
from service.images import image_errors
from service.outputs import maps, masks
from service.outputs.colours import MAX_PALETTE_CLASSES, class_color
from service.outputs.features import encode_view_png
from service.outputs.polygons import Polygon, class_polygons, simplify
from service.outputs.run_lengths import class_runs, compress_counts
from service.rest import requests
from service.rest.errors import error_detail

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
SAFETENSORS: Final = "application/octet-stream"
PNG: Final = "image/png"
PNG_FORMATS: Final = {"labels", "overlay", "heatmap"}
# Of PNG files: drawn over the image.
DRAWN_FORMATS: Final = {"overlay", "heatmap"}
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
Piece = bytes | memoryview  # a part of a response body
# The place of a large text in a document. JSON has no such byte: strings have it escaped.
PLACE: Final = b"\0"
# Fields of one image or text that JSON alone has, and its arrays.
Item = tuple[dict[str, Any], Mapping[str, Array]]
# Whether options do not fit a media type, the option, and the error.
Rule = tuple[bool, str, str]
AnswerT = TypeVar("AnswerT", bound=messages.ListResponse)
OptionsT = TypeVar("OptionsT", bound=requests.Options)


@lru_cache(256)
def choose_media(accept: str | None, offered: tuple[str, ...]) -> str:
    """Choose the response's media type by RFC 9110, section 12.5.1.

    Args:
        accept: The `Accept` header; None accepts everything.
        offered: In the server's order of preference, for wildcards and equal weights.

    Raises:
        NotAcceptable: The header accepts none of them.
    """
    weights: dict[str, float] = {}
    for part in (accept or "*/*").split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weights[media] = 1.0
        for text in parameters:
            if text.startswith("q="):
                weights[media] = _parse_weight(text[2:])

    def weight(media: str) -> float:
        # The most specific range decides.
        ranges = (media, f"{media.partition('/')[0]}/*", "*/*")
        return next((weights[one] for one in ranges if one in weights), 0.0)

    best = max(offered, key=weight)
    if weight(best) <= 0:
        raise NotAcceptable(f"Accept must allow one of {', '.join(offered)}.")
    return best


def _parse_weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


@dataclass(frozen=True, slots=True)
class RestRequest:
    """A request as it was read: its options, its encoded images, and the response's media type."""

    options: Any
    images: requests.ImageInputs
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

    In one piece, a large body would wait in the connection's buffer while the server takes the
    request for finished.
    """

    def __init__(self, pieces: Sequence[Piece], media_type: str) -> None:
        self._pieces = pieces
        num_bytes = sum(map(len, pieces))
        super().__init__(headers={"content-length": str(num_bytes)}, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        for piece in self._pieces:
            for begin in range(0, len(piece), PIECE_BYTES):
                body = bytes(piece[begin : begin + PIECE_BYTES])
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def write_content(plane: DataPlane, write: Callable[[], T], num_values: int) -> T:
    """Run `write`, which is CPU work: in the pool unless the answer has few values."""
    with current_call.get().stage("post"):
        return write() if num_values <= MAX_INLINE_VALUES else await plane.offload(write)


def _check(rules: Iterable[Rule]) -> None:
    for is_wrong, param, text in rules:
        if is_wrong:
            raise InvalidRequest(text, param=param)


# No slots: Python 3.11 cannot call a subscripted generic class that has them.
@dataclass(frozen=True, kw_only=True)
class ResponseWriter(Generic[AnswerT, OptionsT]):
    """How one kind of answer is written in each media type.

    Attributes:
        items: Each image or text without an error, for a media type.
        num_values: About how many values the response holds. Default: many.
        png: The one PNG file; None if there is no such form. An answer with this form has a value
            for each pixel, and its PNG and npy files hold one image.
        rules: Options that a media type cannot hold.
        has_places: Whether safetensors has rows of zeros for errors, which `items` include.
    """

    items: Callable[[AnswerT, OptionsT, str], Iterable[Item]]
    num_values: Callable[[AnswerT], int] = lambda answer: MAX_INLINE_VALUES + 1
    png: Callable[[AnswerT, RestRequest, ImageLimits], bytes] | None = None
    rules: Callable[[OptionsT, str], Sequence[Rule]] = lambda options, media: ()
    has_places: bool = False

    @property
    def media_types(self) -> tuple[str, ...]:
        """Media types of the response, in order of preference."""
        return (JSON, NPY, SAFETENSORS) if self.png is None else (JSON, NPY, SAFETENSORS, PNG)

    def check(self, options: OptionsT, media: str, num_images: int) -> None:
        """Check, before any work, that the media type can hold the answer.

        Raises:
            InvalidRequest: It cannot; the message names one that can.
        """
        is_file = media in {PNG, NPY}
        is_many = is_file and self.png is not None and num_images > 1
        no_errors = (
            f"{media} cannot hold errors: accept {JSON} or {SAFETENSORS} (safetensors), or omit "
            "partial."
        )
        _check([(is_many, "images", f"{media} holds one image: send one image.")])
        _check(self.rules(options, media))
        _check([(is_file and options.partial, "partial", no_errors)])

    def answer_encoding(self, options: OptionsT, media: str) -> AnswerEncoding:
        """How arrays are written, for the memory of the answer."""
        layout = vars(options).get("format")  # pydantic's `getattr` fails slowly
        if media == PNG:
            return "overlay" if layout in DRAWN_FORMATS else "png"
        if media != JSON:
            return "bytes"
        return "outlines" if layout in requests.COCO_FORMATS else options.encoding

    def write(self, answer: AnswerT, request: RestRequest, limits: ImageLimits) -> list[Piece]:
        """The pieces of the response body in the request's media type. CPU work."""
        options, media = request.options, request.media
        if media == PNG and self.png is not None:
            return [self.png(answer, request, limits)]
        items = self.items(answer, options, media)
        errors = answer.errors if options.partial else None
        if media == JSON:
            return write_json(answer.model, items, options.encoding, errors)
        rows = [arrays for _, arrays in items]
        columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
        if media == NPY:
            return write_npy(columns, is_one=self.png is not None)
        is_split = errors is not None and not self.has_places
        return write_safetensors(answer.model, columns, errors, is_split=is_split)


def _embedding_items(
    answer: messages.EmbedImagesResponse, options: requests.EmbedImagesBody, media: str
) -> Iterator[Item]:
    all_scales = answer.scales or ({},) * len(answer.embeddings)
    for arrays, scales in zip(answer.embeddings, all_scales, strict=True):
        yield _with_scales(arrays, scales, options.encoding, media)


# Embeddings of images: [B, h, w, D] or [B, D].
IMAGE_EMBEDDINGS: Final = ResponseWriter[messages.EmbedImagesResponse, requests.EmbedImagesBody](
    items=_embedding_items,
    num_values=lambda answer: sum([a.size for row in answer.embeddings for a in row.values()]),
    rules=lambda options, media: [
        (
            media == NPY and len(set(options.outputs)) > 1,
            "outputs",
            f"{NPY} holds one array: request one output, or accept {SAFETENSORS} (safetensors).",
        )
    ],
)


def _text_items(
    answer: messages.EmbedTextsResponse, options: requests.EmbedTextsBody, media: str
) -> Iterator[Item]:
    is_matrix = media == SAFETENSORS
    rows_TD, scales_T = answer.in_places() if is_matrix else (answer.embeddings_TD, answer.scales_T)
    name = "embedding" if media == JSON else "embeddings"
    for index, row_D in enumerate(rows_TD):
        scales = {} if scales_T is None else {name: scales_T[index]}
        yield _with_scales({name: row_D}, scales, options.encoding, media)


# Embeddings of texts: [T, D], where safetensors has rows of zeros for errors.
TEXT_EMBEDDINGS: Final = ResponseWriter[messages.EmbedTextsResponse, requests.EmbedTextsBody](
    items=_text_items, num_values=lambda answer: answer.embeddings_TD.size, has_places=True
)


def _with_scales(
    arrays: Mapping[str, Array], scales: Mapping[str, Any], encoding: requests.Encoding, media: str
) -> Item:
    """Arrays of one item with the scales of its int8 vectors, if it has any."""
    if not scales:
        return {}, arrays
    if media != JSON:
        return {}, {**arrays, **{f"{name}_scale": scale for name, scale in scales.items()}}
    sent = {n: encode_array(s, encoding) if s.ndim else float(s) for n, s in scales.items()}
    return {"scales": sent}, arrays


def _class_items(
    answer: messages.ClassifyImagesResponse, options: requests.ClassifyImagesBody, media: str
) -> Iterator[Item]:
    for one in answer.classifications:
        if media == JSON:
            rows = [
                {"label": k, "name": answer.classes[k - 1], "probability": share, "cosine": cosine}
                for k, share, cosine in one.rows()
            ]
            yield {"classes": rows}, {}
        elif media == NPY:
            yield {}, {"probabilities": one.probabilities_K[np.argsort(one.labels_K)]}
        else:
            names = ("labels", "probabilities", "cosines")
            yield {}, {name: getattr(one, f"{name}_K") for name in names}


# Classes of images, the best first; npy has probabilities [B, K] in the order of the request.
CLASSES: Final = ResponseWriter[messages.ClassifyImagesResponse, requests.ClassifyImagesBody](
    items=_class_items,
    num_values=lambda answer: sum(3 * one.labels_K.size for one in answer.classifications),
    rules=lambda options, media: [
        (
            media == NPY and options.top_k is not None,
            "top_k",
            f"{NPY} holds the probabilities of all classes, in the order of the request: omit "
            f"top_k, or accept {JSON}.",
        )
    ],
)


def _mask_rules(options: requests.SegmentImagesBody, media: str) -> list[Rule]:
    layout, needs = options.format, f"The format {options.format} needs"
    is_json, num_classes = media == JSON, len(options.classes)
    scores = f"include_scores needs Accept: {JSON} or {SAFETENSORS} (safetensors)."
    return [
        *_class_rules(layout, num_classes, media),
        (media != PNG and layout in PNG_FORMATS, "format", f"{needs} Accept: {PNG}."),
        (not is_json and layout in requests.COCO_FORMATS, "format", f"{needs} Accept: {JSON}."),
        (
            not is_json and options.include_instances,
            "include_instances",
            f"include_instances needs Accept: {JSON}.",
        ),
        (bool(options.include_scores) and media in {NPY, PNG}, "include_scores", scores),
        (layout in DRAWN_FORMATS and options.size != "image", "size", f"{needs} size image."),
        (
            options.tolerance > 0 and layout != "polygons",
            "tolerance",
            "tolerance needs format polygons.",
        ),
        (
            options.holes is not None
            and layout != "polygons"
            and not (is_json and options.include_instances),
            "holes",
            "holes needs format polygons, or include_instances.",
        ),
    ]


def _class_rules(layout: str, num_classes: int, media: str) -> list[Rule]:
    """What the number of classes rules out; that of a head is known with the answer only."""
    return [
        (
            media == PNG and layout == "mask" and num_classes > MAX_PALETTE_CLASSES,
            "classes",
            f"classes: {num_classes} given, at most {MAX_PALETTE_CLASSES} fit the palette of a "
            f"PNG; use format labels, or accept {NPY}.",
        ),
        (
            layout == "heatmap" and num_classes > 1,
            "classes",
            f"The format heatmap shows one class, not {num_classes}: name one, or request "
            "include_scores=all as safetensors.",
        ),
    ]


def _mask_png(
    answer: messages.SegmentImagesResponse, request: RestRequest, limits: ImageLimits
) -> bytes:
    mask, layout = answer.segmentations[0], request.options.format
    _check(_class_rules(layout, len(answer.classes), PNG))
    if layout in {"labels", "mask"}:
        encode = masks.encode_labels_png if layout == "labels" else masks.encode_mask_png
        return encode(mask.labels_HW)
    image = request.images[0]
    assert isinstance(image, bytes)
    with image_errors("images[0]"):
        pixels_HW3 = decode_image(image, limits)
    if layout == "overlay":
        return masks.encode_overlay_png(mask.labels_HW, pixels_HW3)
    assert mask.cosines_KHW is not None
    return masks.encode_heatmap_png(mask.cosines_KHW[0], pixels_HW3)


def _mask_items(
    answer: messages.SegmentImagesResponse, options: requests.SegmentImagesBody, media: str
) -> Iterator[Item]:
    for mask in answer.segmentations:
        fields = _mask_fields(mask, answer.classes, options) if media == JSON else {}
        is_text = media == JSON and options.encoding == "list"  # where both types are the same
        arrays: dict[str, Array] = {}
        if options.format not in requests.COCO_FORMATS:
            arrays["labels"] = mask.labels_HW if is_text else mask.wire_labels
        if mask.scores_HW is not None:
            arrays["scores"] = mask.scores_HW
        if mask.cosines_KHW is not None:
            arrays["cosines"] = mask.cosines_KHW
        yield fields, arrays


def _mask_fields(
    mask: messages.Segmentation, names: Sequence[str], options: requests.SegmentImagesBody
) -> dict[str, Any]:
    """The size, the classes and the instances of a mask."""
    height, width = mask.labels_HW.shape
    classes: list[dict[str, Any]] = []
    for k, (share, score, confidence) in enumerate(mask.class_rows, start=1):
        one = {"label": k, "name": names[k - 1], "color": class_color(k)}
        one |= {"area_share": share, "score": score}
        classes.append(one if confidence is None else {**one, "confidence": confidence})
    polygons: list[list[Polygon]] = []
    if options.format == "polygons":
        polygons = class_polygons(
            mask.labels_HW,
            len(names),
            holes=options.outline_holes,
            min_area=options.min_area_share * height * width,
        )
    if options.format in requests.COCO_FORMATS:
        runs = class_runs(mask.labels_HW, len(names))
        outlines = [[simplify(p, options.tolerance) for p in own] for own in polygons] or (
            _run_lengths([run.counts for run in runs], mask, options)
        )
        for one, run, outline in zip(classes, runs, outlines, strict=True):
            one.update(area=run.area, bbox=run.box, segmentation=outline)
    fields = {
        "height": height,
        "width": width,
        "classes": classes,
        "background_share": mask.area_shares[0],
    }
    if options.include_instances:
        fields["instances"] = _instances(mask, options, polygons)
    return fields


def _instances(
    mask: messages.Segmentation,
    options: requests.SegmentImagesBody,
    polygons: Sequence[Sequence[Polygon]],
) -> list[dict[str, Any]]:
    """The instances, each with its outline."""
    outlines: list[Any]
    if options.format == "polygons":
        # A polygon is a connected region too; both begin at the uppermost of its leftmost pixels.
        height = mask.labels_HW.shape[0]
        by_start = {
            (label, polygon[0] * height + polygon[1]): polygon
            for label, own in enumerate(polygons, start=1)
            for polygon in own
        }
        outlines = [
            [simplify(by_start[one.label, int(one.counts[0])], options.tolerance)]
            for one in mask.instances
        ]
    else:
        outlines = _run_lengths([one.counts for one in mask.instances], mask, options)
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
    counts: list[NDArray[np.int64]],
    mask: messages.Segmentation,
    options: requests.SegmentImagesBody,
) -> list[Any]:
    """Run lengths as COCO's objects: numbers if requested, else compressed."""
    numbers: list[Any] = counts if options.format == "rle_counts" else compress_counts(counts)
    return [{"size": mask.labels_HW.shape, "counts": n} for n in numbers]


# Masks; in JSON as labels, or each class in a format of COCO.
MASKS: Final = ResponseWriter[messages.SegmentImagesResponse, requests.SegmentImagesBody](
    items=_mask_items,
    png=_mask_png,
    rules=_mask_rules,
)


def _size(array: Array) -> dict[str, Any]:
    return {"height": array.shape[0], "width": array.shape[1]}


def _groups(labels_HW: NDArray[Any]) -> list[dict[str, Any]]:
    shares = count_labels(labels_HW, int(labels_HW.max()) + 1)[1:] / labels_HW.size
    return [
        {"label": label, "color": class_color(label), "area_share": share}
        for label, share in enumerate(shares.tolist(), start=1)
    ]


# Visualized features.
FEATURES: Final = ResponseWriter[messages.MapsResponse, requests.VisualizeFeaturesBody](
    items=lambda answer, options, media: [
        (
            _size(array) | ({"groups": _groups(array)} if options.kind == "groups" else {}),
            {"features": array},
        )
        for array in answer.maps
    ],
    png=lambda answer, request, limits: encode_view_png(answer.maps[0], request.options.kind),
)


def _map_png(array: messages.FloatArray, options: requests.MapBody) -> bytes:
    if not isinstance(options, requests.DepthBody):
        return maps.encode_normals_png(array)
    return (maps.encode_depth_png if options.format == "colors" else maps.encode_millimetres_png)(
        array
    )


# Depth, or surface normals.
MAPS: Final = ResponseWriter[messages.MapsResponse, requests.MapBody](
    items=lambda answer, options, media: [
        (_size(array), {options.task: array}) for array in answer.maps
    ],
    png=lambda answer, request, limits: _map_png(answer.maps[0], request.options),
    rules=lambda options, media: [
        (
            media != PNG and vars(options).get("format") is not None,
            "format",
            f"format needs Accept: {PNG}. Other media types hold depth in metres, as float32.",
        )
    ],
)


def write_json(
    model: str,
    items: Iterable[Item],
    encoding: requests.Encoding,
    errors: messages.ItemErrors | None,
) -> list[Piece]:
    """A list with an entry for each item without an error, and the errors unless None."""
    data = [
        {"index": i} | fields | {n: encode_array(a, encoding) for n, a in arrays.items()}
        for i, (fields, arrays) in zip(_good_indices(errors), items, strict=False)
    ]
    document: dict[str, Any] = {"object": "list", "model": model, "data": data}
    if errors is not None:
        document["errors"] = _item_errors(errors)
    return dump_pieces(document)


def write_safetensors(
    model: str,
    columns: Mapping[str, Sequence[Array]],
    errors: messages.ItemErrors | None,
    *,
    is_split: bool,
) -> list[Piece]:
    """A safetensors file with the model, and the errors unless None, in its metadata.

    Each column is stacked. It is split into `name.0`, `name.2` by index with `is_split`, or where
    shapes differ. The library would hold the arrays twice more, which for a mask with scores is
    most of its memory.

    Source: the format's description in github.com/huggingface/safetensors.
    """
    # The arrays of each tensor, one after the other, and its shape.
    tensors: dict[str, tuple[Sequence[Array], tuple[int, ...]]] = {}
    for name, arrays in columns.items():
        if not is_split and len({array.shape for array in arrays}) == 1:
            tensors[name] = arrays, (len(arrays), *arrays[0].shape)
        else:
            one_each = zip(_good_indices(errors), arrays, strict=False)
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
        is_small = arrays[0].nbytes < PIECE_BYTES  # of which a text may have thousands
        pieces += map(_view, [np.stack(arrays)] if is_small else arrays)
    head = orjson.dumps(header)
    head += b" " * (-len(head) % 8)
    return [len(head).to_bytes(8, "little") + head, *pieces]


def write_npy(columns: Mapping[str, Sequence[Array]], *, is_one: bool) -> list[Piece]:
    """An npy file: of the one image, or of all items stacked, with the scales of int8 vectors.

    `np.save` would hold all bytes next to the array.

    Raises:
        InvalidRequest: The arrays have different shapes.
    """
    arrays = next(iter(columns.values()))
    scales = [column for name, column in columns.items() if name.endswith("_scale")]
    if len({array.shape for array in arrays}) > 1:
        raise InvalidRequest(
            "The images have different grids, which one array cannot hold: use fit squash, or "
            f"accept {SAFETENSORS} (safetensors).",
            param="fit",
        )
    array = arrays[0] if is_one else np.stack(arrays)
    if scales:
        array = _scaled_rows(array, np.stack(scales[0]))
    stream = BytesIO()
    array = little_endian(array)
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    return [stream.getvalue(), _view(array)]


def _scaled_rows(rows: Array, scales: Array) -> Array:
    """Int8 rows and their scales as one array of records `scale`, `values`."""
    record = np.dtype([("scale", "<f4"), ("values", "i1", rows.shape[-1:])])
    records = np.empty(scales.shape, record)
    records["scale"], records["values"] = scales, rows
    return records


def _good_indices(errors: messages.ItemErrors | None) -> Iterator[int]:
    """Indices in the request, from 0, of the items without an error."""
    return (index for index in count() if not errors or index not in errors)


def _item_errors(errors: messages.ItemErrors) -> list[dict[str, Any]]:
    """Each error as the body that it has when it fails the whole request."""
    return [
        {"index": index, "error": error_detail(error)} for index, error in sorted(errors.items())
    ]


def encode_array(array: Array, encoding: requests.Encoding) -> Any:
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
            return rows.getvalue()
        return np.ascontiguousarray(array)
    text = pybase64.b64encode(_view(array))
    data = memoryview(text) if array.size > MAX_INLINE_VALUES else text.decode()
    return {"dtype": array.dtype.name, "shape": array.shape, "data": data}


def _view(array: Array) -> memoryview:
    return little_endian(array).reshape(-1).view(np.uint8).data


def little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """The array in row-major memory with little-endian elements; a copy only if needed."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def dump_pieces(document: Any) -> list[Piece]:
    """JSON as `dump` writes it, in pieces: large texts are not copied into it, but stay pieces.

    They are bytes with JSON, and views of the bytes of a string.
    """
    texts: list[Piece] = []

    def leave_out(text: Piece) -> orjson.Fragment:
        texts.append(text)
        return orjson.Fragment(PLACE if isinstance(text, bytes) else b'"%b"' % PLACE)

    frame = orjson.dumps(document, leave_out, orjson.OPT_SERIALIZE_NUMPY)
    if not texts:
        return [frame]
    first, *others = frame.split(PLACE)
    return [first, *chain.from_iterable(zip(texts, others, strict=True))]


def dump(document: Any) -> bytes:
    """JSON in UTF-8; NaN and infinities become null, since JSON has no form for them."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
