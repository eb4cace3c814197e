"""Responses in the media type that the client accepts."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import Any, Final

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray
from safetensors.numpy import save

from model.image_codec import ImageLimits, decode_image
from service.errors import InvalidRequest, NotAcceptable
from service.images import image_errors
from service.messages import (
    Classification,
    ClassifyImagesResponse,
    EmbedImagesResponse,
    EmbedTextsResponse,
    EstimateMapsResponse,
    FloatArray,
    ItemErrors,
    ListResponse,
    MaybeEncoded,
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
    MapOptions,
    Options,
    SegmentImagesOptions,
    VisualizeFeaturesOptions,
)

# Which of the offered media types the caller accepts.

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
SAFETENSORS: Final = "application/octet-stream"
PNG: Final = "image/png"


@lru_cache(256)
def choose_media(accept: str | None, offered: tuple[str, ...]) -> str:
    """The offered media type that the caller likes best.

    Args:
        accept: The `Accept` header; none accepts everything.
        offered: In the server's order of preference, for wildcards and equal weights.

    Raises:
        NotAcceptable: None of them is accepted.
    """
    wishes = [_parse(part) for part in (accept or "*/*").split(",") if part.strip()]
    best, best_weight = "", 0.0
    for media in offered:
        matching = [(_rank(pattern), weight) for pattern, weight in wishes if _fits(pattern, media)]
        # The most specific pattern that fits decides, as RFC 9110 has it.
        weight = max(matching)[1] if matching else 0.0
        if weight > best_weight:
            best, best_weight = media, weight
    if not best:
        raise NotAcceptable(f"The answer can be written as {', '.join(offered)}; accept one.")
    return best


def _parse(part: str) -> tuple[str, float]:
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


def _fits(pattern: str, media: str) -> bool:
    return pattern in {"*/*", media, f"{media.split('/', maxsplit=1)[0]}/*"}


def _rank(pattern: str) -> int:
    return 2 - pattern.count("*")


# Values and arrays as JSON, by orjson: it writes arrays without making Python numbers of them.


def dump(document: dict[str, Any]) -> bytes:
    """JSON in UTF-8; what is no number becomes null, as JSON has no other way."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_array(array: NDArray[np.generic], encoding: Encoding) -> Any:
    """Nested lists with as many digits as the type needs, or base64 with dtype and shape."""
    if encoding == "list":
        return np.ascontiguousarray(array)
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    data = pybase64.b64encode_as_string(little.data.cast("B"))
    return {"dtype": array.dtype.name, "shape": array.shape, "data": data}


# One image's mask as JSON: an array, or each class as COCO has it.
#
# Shape legend: H W pixels.


def mask_body(
    mask: Segmentation, names: Sequence[str], options: SegmentImagesOptions
) -> dict[str, Any]:
    """The mask in the format that the options name."""
    height, width = mask.labels_HW.shape
    background_share, *shares = mask.area_shares
    classes = [
        {"label": label, "name": name, "color": class_color(label), "area_share": share}
        for label, (name, share) in enumerate(zip(names, shares, strict=True), start=1)
    ]
    body = {
        "height": height,
        "width": width,
        "classes": classes,
        "background_share": background_share,
    }
    if options.format == "mask":
        body["labels"] = encode_array(mask.wire_labels, options.encoding)
    else:
        for entry, region in zip(classes, _regions(mask, len(names), options), strict=True):
            entry.update(region)
    if mask.scores_HW is not None:
        body["scores"] = encode_array(mask.scores_HW, options.encoding)
    return body


def _regions(
    mask: Segmentation, num_classes: int, options: SegmentImagesOptions
) -> list[dict[str, Any]]:
    """Area, bounding box and outline of each class, under the names of COCO's annotations."""
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


# Writes answers in the media type that was chosen; CPU work, so it runs in the pool.
#
# Shape legend: B images, T texts, D width, H W pixels, h w patch grid.

Array = NDArray[np.generic]


def check_embed_media(media: str, options: EmbedImagesOptions) -> None:
    """Refuse, before any work, what one npy array cannot hold.

    Raises:
        InvalidRequest: Several outputs as npy.
    """
    if media == NPY and len(set(options.outputs)) > 1:
        raise InvalidRequest(
            "application/x-npy holds one array: ask for one output, or accept "
            "application/octet-stream (safetensors).",
            param="outputs",
        )


def check_segment_media(media: str, options: SegmentImagesOptions, num_images: int) -> None:
    """Refuse, before any work, what the chosen file cannot hold.

    Raises:
        InvalidRequest: Several images as PNG or npy, too many classes for a palette, or a format
            that another media type has.
    """
    if media in {PNG, NPY} and num_images > 1:
        raise InvalidRequest(f"{media} holds one mask: send one image.", param="images")
    if media == PNG and options.format == "mask" and len(options.classes) > MAX_PALETTE_CLASSES:
        raise InvalidRequest(
            f"A palette PNG has room for {MAX_PALETTE_CLASSES} classes; accept application/x-npy.",
            param="classes",
        )
    if media != PNG and options.format == "overlay":
        raise InvalidRequest("An overlay is a PNG: accept image/png.", param="format")
    if media != JSON and options.format in COCO_FORMATS:
        raise InvalidRequest(
            f"The format {options.format} is JSON: accept application/json.", param="format"
        )


def check_partial_media(media: str, options: Options) -> None:
    """Refuse, before any work, files that have no room for errors.

    Raises:
        InvalidRequest: The request is partial, and PNG or npy is to be written.
    """
    if options.partial and media in {PNG, NPY}:
        raise InvalidRequest(
            f"{media} has no room for errors: accept application/json or application/octet-stream "
            "(safetensors), or leave partial out.",
            param="partial",
        )


def write_image_embeddings(
    answer: EmbedImagesResponse, media: str, options: EmbedImagesOptions
) -> bytes:
    """Embeddings of images; npy and safetensors stack them: [B, h, w, D] or [B, D]."""
    all_scales: Sequence[dict[str, FloatArray]] = answer.scales or ({},) * len(answer.embeddings)
    if media == JSON:
        data = [
            {name: encode_array(a, options.encoding) for name, a in outputs.items()}
            | scales_body(scales, options.encoding)
            for outputs, scales in zip(answer.embeddings, all_scales, strict=True)
        ]
        return items_body(answer.model, data, errors_of(answer, options))
    rows = [
        outputs | {f"{name}_scale": scale for name, scale in scales.items()}
        for outputs, scales in zip(answer.embeddings, all_scales, strict=True)
    ]
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    if media == NPY:
        arrays, *scales_of = columns.values()
        if scales_of:
            arrays = list(map(scaled_rows, arrays, *scales_of))
        if len({a.shape for a in arrays}) > 1:
            raise InvalidRequest(
                "The images have different grids, which one array cannot hold: use fit squash, "
                "or accept application/octet-stream (safetensors).",
                param="fit",
            )
        return encode_npy(np.stack(arrays))
    return tensors_body(answer.model, columns, errors_of(answer, options))


def write_text_embeddings(answer: EmbedTextsResponse, media: str, options: EmbedTextsBody) -> bytes:
    """Embeddings of texts; npy and safetensors hold them as [T, D], with zeros for errors."""
    rows_TD, scales_T = answer.embeddings_TD, answer.scales_T
    if media == NPY:
        return encode_npy(rows_TD if scales_T is None else scaled_rows(rows_TD, scales_T))
    errors = errors_of(answer, options)
    if media == JSON:
        data = [{"embedding": encode_array(row_D, options.encoding)} for row_D in rows_TD]
        if scales_T is not None:
            all_scales = (scales_body({"embedding": s}, options.encoding) for s in scales_T)
            data = [item | scales for item, scales in zip(data, all_scales, strict=True)]
        return items_body(answer.model, data, errors)
    rows_TD, scales_T = answer.in_places()
    tensors: dict[str, Array] = {"embeddings": rows_TD}
    if scales_T is not None:
        tensors["embeddings_scale"] = scales_T
    return save_tensors(answer.model, tensors, errors)


def write_segmentations(
    answer: SegmentImagesResponse, media: str, options: SegmentImagesOptions
) -> bytes:
    """Masks as JSON, safetensors, or the one mask as palette PNG or npy."""
    if media == PNG:
        return encode_mask_png(answer.segmentations[0].labels_HW)
    if media == NPY:
        return encode_npy(answer.segmentations[0].wire_labels)
    if media == JSON:
        data = [mask_body(mask, answer.classes, options) for mask in answer.segmentations]
        return items_body(answer.model, data, errors_of(answer, options))
    columns: dict[str, list[Array]] = {"labels": [s.wire_labels for s in answer.segmentations]}
    scores = [s.scores_HW for s in answer.segmentations if s.scores_HW is not None]
    columns |= {"scores": list(scores)} if scores else {}
    return tensors_body(answer.model, columns, errors_of(answer, options))


def write_overlay(answer: SegmentImagesResponse, image: MaybeEncoded, limits: ImageLimits) -> bytes:
    """The image with its mask laid over it, as PNG."""
    assert isinstance(image, bytes)
    with image_errors("images[0]"):
        pixels_HW3 = decode_image(image, limits)
    return encode_overlay_png(answer.segmentations[0].labels_HW, pixels_HW3)


def errors_of(answer: ListResponse, options: Options) -> ItemErrors | None:
    """What is wrong with single items, where there is to be a place for it."""
    return answer.errors if options.partial else None


def items_body(model: str, data: list[dict[str, Any]], errors: ItemErrors | None) -> bytes:
    """One entry for each image or text that has no error, as JSON, and then the errors."""
    places = (place for place in count() if place not in (errors or {}))
    items = [{"index": place} | item for place, item in zip(places, data, strict=False)]
    body: dict[str, Any] = {"object": "list", "model": model, "data": items}
    if errors is not None:
        body["errors"] = item_errors(errors)
    return dump(body)


def item_errors(errors: ItemErrors) -> list[dict[str, Any]]:
    """Each with the body that it would have as the answer to the whole request."""
    return [
        {"index": index, "error": error_detail(error)} for index, error in sorted(errors.items())
    ]


def scales_body(scales: Mapping[str, FloatArray], encoding: Encoding) -> dict[str, Any]:
    """The scales of int8 vectors by the field that they are of, or nothing."""
    if not scales:
        return {}
    return {
        "scales": {
            name: encode_array(scale, encoding) if scale.ndim else float(scale)
            for name, scale in scales.items()
        }
    }


def scaled_rows(rows: Array, scales: FloatArray) -> Array:
    """Rows and their scales in one array, of records: `scale`, and `values` of int8."""
    record = np.dtype([("scale", "<f4"), ("values", "i1", rows.shape[-1:])])
    records = np.empty(scales.shape, record)
    records["scale"], records["values"] = scales, rows
    return records


def tensors_body(
    model: str, columns: Mapping[str, Sequence[Array]], errors: ItemErrors | None = None
) -> bytes:
    """As safetensors: each column stacked, or by place, `name.0`, `name.2`.

    The latter where shapes differ, and where single items may have errors.
    """
    tensors: dict[str, Array] = {}
    for name, arrays in columns.items():
        if errors is None and len({a.shape for a in arrays}) == 1:
            tensors[name] = np.stack(arrays)
        else:
            places = (place for place in count() if place not in (errors or {}))
            tensors |= {
                f"{name}.{place}": np.ascontiguousarray(a)
                for place, a in zip(places, arrays, strict=False)
            }
    return save_tensors(model, tensors, errors)


def save_tensors(model: str, tensors: dict[str, Array], errors: ItemErrors | None) -> bytes:
    """As safetensors, with the model and, where there is to be a place for them, the errors."""
    metadata = {"model": model}
    if errors is not None:
        metadata["errors"] = json.dumps(item_errors(errors))
    return bytes(save(tensors, metadata=metadata))


# Writes what images show, their classes and their features, in the media type that was chosen.
#
# CPU work, for the pool. Shape legend: B images, K classes, H W pixels.


def check_classify_media(media: str, options: ClassifyImagesOptions) -> None:
    """Refuse, before any work, what npy has no room for.

    Raises:
        InvalidRequest: Some classes only, of which npy could not tell which they are.
    """
    if media == NPY and options.top_k is not None:
        raise InvalidRequest(
            "application/x-npy holds the probabilities of all classes, in the order given: leave "
            "top_k out, or accept application/json.",
            param="top_k",
        )


def write_classifications(
    answer: ClassifyImagesResponse, media: str, options: ClassifyImagesOptions
) -> bytes:
    """As JSON and safetensors the best class first; as npy [B, K] in the order of the request."""
    found = answer.classifications
    if media == NPY:
        return encode_npy(np.stack([_in_order(one) for one in found]))
    errors = errors_of(answer, options)
    if media == JSON:
        data = [{"classes": _classes_body(one, answer.classes)} for one in found]
        return items_body(answer.model, data, errors)
    columns: dict[str, list[NDArray[Any]]] = {
        "labels": [one.labels_K for one in found],
        "probabilities": [one.probabilities_K for one in found],
        "cosines": [one.cosines_K for one in found],
    }
    return tensors_body(answer.model, columns, errors)


def _in_order(found: Classification) -> NDArray[np.float32]:
    return found.probabilities_K[np.argsort(found.labels_K)]


def _classes_body(found: Classification, names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"label": label, "name": names[label - 1], "probability": probability, "cosine": cosine}
        for label, probability, cosine in found.rows()
    ]


def check_view_media(media: str, num_images: int) -> None:
    """Refuse, before any work, what the chosen file cannot hold.

    Raises:
        InvalidRequest: Several images as PNG or npy.
    """
    if media in {PNG, NPY} and num_images > 1:
        raise InvalidRequest(f"{media} holds one map: send one image.", param="images")


def write_views(
    answer: VisualizeFeaturesResponse, media: str, options: VisualizeFeaturesOptions
) -> bytes:
    """Maps as JSON, safetensors, or the one map as PNG or npy."""
    if media == PNG:
        return encode_view_png(answer.maps[0], options.kind)
    if media == NPY:
        return encode_npy(answer.maps[0])
    errors = errors_of(answer, options)
    if media == JSON:
        data = [_view_body(array, options) for array in answer.maps]
        return items_body(answer.model, data, errors)
    return tensors_body(answer.model, {"features": answer.maps}, errors)


def _view_body(array: NDArray[Any], options: VisualizeFeaturesOptions) -> dict[str, Any]:
    body: dict[str, Any] = {"height": array.shape[0], "width": array.shape[1]}
    if options.kind == "groups":
        shares = np.bincount(array.ravel())[1:] / array.size
        body["groups"] = [
            {"label": label, "color": class_color(label), "area_share": share}
            for label, share in enumerate(shares.tolist(), start=1)
        ]
    return body | {"features": encode_array(array, options.encoding)}


# Writes maps of depth and normals in the media type that was chosen; CPU work, for the pool.
#
# Shape legend: H W pixels.


def check_map_media(media: str, options: MapOptions, num_images: int) -> None:
    """Refuse, before any work, what the chosen file cannot hold.

    Raises:
        InvalidRequest: Several images as PNG or npy, or a PNG's format for another media type.
    """
    if media in {PNG, NPY} and num_images > 1:
        raise InvalidRequest(f"{media} holds one map: send one image.", param="images")
    if media != PNG and isinstance(options, DepthOptions) and options.format is not None:
        raise InvalidRequest(
            f"The format {options.format} is a PNG: accept image/png. Elsewhere depth is in "
            "metres, as float32.",
            param="format",
        )


def write_maps(answer: EstimateMapsResponse, media: str, options: MapOptions) -> bytes:
    """Maps as JSON, safetensors, or the one map as PNG or npy."""
    if media == PNG:
        return _write_png(answer.maps[0], options)
    if media == NPY:
        return encode_npy(answer.maps[0])
    if media == JSON:
        data = [
            {"height": array.shape[0], "width": array.shape[1]}
            | {options.task: encode_array(array, options.encoding)}
            for array in answer.maps
        ]
        return items_body(answer.model, data, errors_of(answer, options))
    columns: dict[str, tuple[FloatArray, ...]] = {options.task: answer.maps}
    return tensors_body(answer.model, columns, errors_of(answer, options))


def _write_png(array: FloatArray, options: MapOptions) -> bytes:
    if not isinstance(options, DepthOptions):
        return encode_normals_png(array)
    return (encode_depth_png if options.format == "colors" else encode_millimetres_png)(array)
