"""Writes answers in the media type that was chosen; CPU work, so it runs in the pool.

Shape legend: B images, T texts, D width, H W pixels, h w patch grid.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from service.errors import InvalidRequest
from service.images.image_codec import ImageLimits, decode_image
from service.masks.mask_codec import (
    MAX_PALETTE_CLASSES,
    encode_mask_png,
    encode_npy,
    encode_overlay_png,
)
from service.messages import (
    EmbedImagesResponse,
    EmbedTextsResponse,
    FloatArray,
    ItemErrors,
    MaybeEncoded,
    SegmentImagesResponse,
)
from service.rest.errors import error_detail
from service.rest.json_body import dump, encode_array
from service.rest.mask_body import mask_body
from service.rest.negotiation import JSON, NPY, PNG
from service.rest.schemas import (
    COCO_FORMATS,
    EmbedImagesOptions,
    EmbedTextsBody,
    Encoding,
    Options,
    SegmentImagesOptions,
)
from service.view_messages import ListResponse

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
    pixels_HW3 = decode_image(image, limits, param="images[0]")
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
