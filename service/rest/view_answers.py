"""Writes what images show, their classes and their features, in the media type that was chosen.

CPU work, for the pool. Shape legend: B images, K classes, H W pixels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.features.view_codec import encode_view_png
from service.masks.mask_codec import class_color, encode_npy
from service.rest.answers import errors_of, items_body, tensors_body
from service.rest.json_body import encode_array
from service.rest.negotiation import JSON, NPY, PNG
from service.rest.view_schemas import ClassifyImagesOptions, VisualizeFeaturesOptions
from service.view_messages import Classification, ClassifyImagesResponse, VisualizeFeaturesResponse


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
