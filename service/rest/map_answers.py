"""Writes maps of depth and normals in the media type that was chosen; CPU work, for the pool.

Shape legend: H W pixels.
"""

from service.dense.map_codec import (
    encode_depth_png,
    encode_millimetres_png,
    encode_normals_png,
)
from service.errors import InvalidRequest
from service.masks.mask_codec import encode_npy
from service.messages import EstimateMapsResponse, FloatArray
from service.rest.answers import errors_of, items_body, tensors_body
from service.rest.json_body import encode_array
from service.rest.negotiation import JSON, NPY, PNG
from service.rest.schemas import DepthOptions, MapOptions


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
