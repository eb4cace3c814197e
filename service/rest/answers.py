"""Writes answers in the media type that was chosen; CPU work, so it runs in the pool.

Shape legend: B pictures, T texts, D width, H W pixels, h w patch grid.
"""

from collections.abc import Mapping, Sequence
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
    SegmentImagesResponse,
)
from service.rest.json_body import dump, encode_array
from service.rest.mask_body import mask_body
from service.rest.negotiation import JSON, NPY, PNG
from service.rest.schemas import (
    COCO_FORMATS,
    EmbedImagesOptions,
    Encoding,
    SegmentImagesOptions,
)

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
        InvalidRequest: Several pictures as PNG or npy, too many classes for a palette, or a format
            that another media type has.
    """
    if media in {PNG, NPY} and num_images > 1:
        raise InvalidRequest(f"{media} holds one mask: send one picture.", param="images")
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


def write_image_embeddings(
    answer: EmbedImagesResponse, media: str, options: EmbedImagesOptions
) -> bytes:
    """Embeddings of pictures; npy and safetensors stack them: [B, h, w, D] or [B, D]."""
    if media == JSON:
        data = [
            {"index": index}
            | {name: encode_array(a, options.encoding) for name, a in outputs.items()}
            for index, outputs in enumerate(answer.embeddings)
        ]
        return list_body(answer.model, data)
    names = answer.embeddings[0].keys()
    columns = {name: [outputs[name] for outputs in answer.embeddings] for name in names}
    if media == NPY:
        (arrays,) = columns.values()
        if len({a.shape for a in arrays}) > 1:
            raise InvalidRequest(
                "The pictures have different grids, which one array cannot hold: use fit squash, "
                "or accept application/octet-stream (safetensors).",
                param="fit",
            )
        return encode_npy(np.stack(arrays))
    return tensors_body(answer.model, columns)


def write_text_embeddings(answer: EmbedTextsResponse, media: str, encoding: Encoding) -> bytes:
    """Embeddings of texts; npy and safetensors hold them as [T, D]."""
    if media == NPY:
        return encode_npy(answer.embeddings_TD)
    if media == JSON:
        data = [
            {"index": index, "embedding": encode_array(row_D, encoding)}
            for index, row_D in enumerate(answer.embeddings_TD)
        ]
        return list_body(answer.model, data)
    return tensors_body(answer.model, {"embeddings": list(answer.embeddings_TD)})


def write_segmentations(
    answer: SegmentImagesResponse, media: str, options: SegmentImagesOptions
) -> bytes:
    """Masks as JSON, safetensors, or the one mask as palette PNG or npy."""
    first = answer.segmentations[0]
    if media == PNG:
        return encode_mask_png(first.labels_HW)
    if media == NPY:
        return encode_npy(first.wire_labels)
    if media == JSON:
        data = [
            {"index": index} | mask_body(mask, answer.classes, options)
            for index, mask in enumerate(answer.segmentations)
        ]
        return list_body(answer.model, data)
    columns: dict[str, list[Array]] = {"labels": [s.wire_labels for s in answer.segmentations]}
    scores = [s.scores_HW for s in answer.segmentations if s.scores_HW is not None]
    return tensors_body(answer.model, columns | ({"scores": list(scores)} if scores else {}))


def write_overlay(answer: SegmentImagesResponse, image: bytes, limits: ImageLimits) -> bytes:
    """The picture with its mask laid over it, as PNG."""
    pixels_HW3 = decode_image(image, limits, param="images[0]")
    return encode_overlay_png(answer.segmentations[0].labels_HW, pixels_HW3)


def list_body(model: str, data: list[dict[str, Any]]) -> bytes:
    """One entry for each picture or text, as JSON."""
    return dump({"object": "list", "model": model, "data": data})


def tensors_body(model: str, columns: Mapping[str, Sequence[Array]]) -> bytes:
    """As safetensors: each column stacked, or as `name.0`, `name.1` where the shapes differ."""
    tensors: dict[str, Array] = {}
    for name, arrays in columns.items():
        if len({a.shape for a in arrays}) == 1:
            tensors[name] = np.stack(arrays)
        else:
            tensors |= {f"{name}.{i}": np.ascontiguousarray(a) for i, a in enumerate(arrays)}
    return bytes(save(tensors, metadata={"model": model}))
