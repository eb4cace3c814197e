"""One inference: tensors to messages, the data plane asked, its answers as tensors.

Shape legend: B images, T texts, D width, h w patch grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from service.call import Call
from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.messages import (
    EmbedImagesRequest,
    EmbedImagesResponse,
    EmbedTextsRequest,
    EmbedTextsResponse,
    ImageInput,
    ModelInfo,
)
from service.open_inference.metadata import OUTPUTS, find_model
from service.open_inference.options import Options, Parameters
from service.open_inference.tensors import TEXT, InputTensor
from service.waiting import wait_both

Arrays = dict[str, NDArray[Any]]

IMAGE_DEFAULTS: Final = ("patch_embeddings", "cls1")
TEXT_DEFAULTS: Final = ("text_embeddings",)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """One request, however it came. An empty model is the default, no outputs are the usual."""

    model: str = ""
    version: str = ""
    inputs: Sequence[InputTensor]
    outputs: Sequence[str] = ()
    parameters: Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class InferAnswer:
    """Its outputs in the order in which they were asked for, float32 or float16."""

    model: str
    outputs: Arrays

    @property
    def num_values(self) -> int:
        """Of all outputs together."""
        return sum(array.size for array in self.outputs.values())


async def infer(plane: DataPlane, request: InferRequest, call: Call) -> InferAnswer:
    """Answer one request.

    Raises:
        InvalidRequest: An input, an output or a parameter is wrong.
        ServiceError: As the data plane raises it.
    """
    info = find_model(plane, request.model, request.version)
    inputs = _by_name(request.inputs)
    options = Options.read(request.parameters, frozenset(inputs))
    names = _check_outputs(request.outputs, inputs, info)
    options.apply(call)
    images = _images_request(request.model, inputs, names, options)
    texts = _texts_request(request.model, inputs, names, options)
    arrays: Arrays = {}
    if images is not None and texts is not None:
        embedded, described = await wait_both(
            plane.embed_images(images, call), plane.embed_texts(texts, call)
        )
        arrays = _image_arrays(embedded) | _text_arrays(described)
    elif images is not None:
        arrays = _image_arrays(await plane.embed_images(images, call))
    elif texts is not None:
        arrays = _text_arrays(await plane.embed_texts(texts, call))
    if options.output_datatype == "FP16":
        with np.errstate(over="ignore"):  # infinite, as the format has it
            arrays = {name: array.astype(np.float16) for name, array in arrays.items()}
    return InferAnswer(model=info.manifest.name, outputs={name: arrays[name] for name in names})


def _by_name(tensors: Sequence[InputTensor]) -> dict[str, InputTensor]:
    inputs = {tensor.name: tensor for tensor in tensors}
    if len(inputs) != len(tensors):
        raise InvalidRequest("An input is given twice.", param="inputs")
    if not inputs:
        raise InvalidRequest(
            "inputs is empty; send an image or a text.", code="empty_list", param="inputs"
        )
    if len(inputs.keys() - {TEXT.name}) > 1:
        raise InvalidRequest(
            "Images come in one of image, pixels and pixel_values; send the others in requests "
            "of their own.",
            param="inputs",
        )
    return inputs


def _check_outputs(
    asked: Sequence[str], inputs: Mapping[str, InputTensor], info: ModelInfo
) -> tuple[str, ...]:
    """The outputs to send, in order: what was asked for, or what is usual with such inputs."""
    has_text, has_images = TEXT.name in inputs, bool(inputs.keys() - {TEXT.name})
    usual = (*(IMAGE_DEFAULTS if has_images else ()), *(TEXT_DEFAULTS if has_text else ()))
    if not asked:
        return tuple(name for name in usual if OUTPUTS[name] in info.manifest.outputs)
    known = [name for name, ours in OUTPUTS.items() if ours in info.manifest.outputs]
    for index, name in enumerate(asked):
        param = f"outputs[{index}]"
        if name not in known:
            raise InvalidRequest(
                f"{param}: {info.manifest.name} has no output {name[:100]!r}; it has "
                f"{', '.join(known)}.",
                code="unknown_output",
                param=param,
            )
        if not (has_text if OUTPUTS[name] == "text" else has_images):
            raise InvalidRequest(
                f"{param}: {name} is of {'texts' if has_images else 'images'}, and the request "
                "has none.",
                param=param,
            )
        if name in asked[:index]:
            raise InvalidRequest(f"{param}: {name} is asked for twice.", param=param)
    return tuple(asked)


def _images_request(
    model: str, inputs: Mapping[str, InputTensor], names: Sequence[str], options: Options
) -> EmbedImagesRequest | None:
    """None where no output of images is wanted."""
    tensors = [tensor for name, tensor in inputs.items() if name != TEXT.name]
    wanted = [OUTPUTS[name] for name in names if OUTPUTS[name] != "text"]
    if not tensors or not wanted:
        return None
    return EmbedImagesRequest(
        images=cast("tuple[ImageInput, ...]", tuple(tensors[0].elements)),
        model=model or None,
        outputs=tuple(wanted),
        normalize=options.normalize,
        resolution=options.resolution,
        fit=options.fit,
    )


def _texts_request(
    model: str, inputs: Mapping[str, InputTensor], names: Sequence[str], options: Options
) -> EmbedTextsRequest | None:
    """None where no output of texts is wanted."""
    tensor = inputs.get(TEXT.name)
    if tensor is None or TEXT_DEFAULTS[0] not in names:
        return None
    return EmbedTextsRequest(
        texts=tuple(_decode_text(item, index) for index, item in enumerate(tensor.elements)),
        model=model or None,
        templates=options.templates,
        normalize=options.normalize,
    )


def _decode_text(item: bytes, index: int) -> str:
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"texts[{index}] is not UTF-8.", code="invalid_text", param=f"texts[{index}]"
        ) from None


def _image_arrays(answer: EmbedImagesResponse) -> Arrays:
    """Each output of all images, [B, h, w, D] or [B, D]."""
    rows = answer.embeddings
    return {
        name: _stack([row[ours] for row in rows])
        for name, ours in OUTPUTS.items()
        if ours in rows[0]
    }


def _text_arrays(answer: EmbedTextsResponse) -> Arrays:
    return {TEXT_DEFAULTS[0]: answer.embeddings_TD}


def _stack(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    if len(arrays) == 1:
        return arrays[0][None]
    if len({array.shape for array in arrays}) > 1:
        raise InvalidRequest(
            "The images have different grids, which one tensor cannot hold: use fit squash, or "
            "send them one by one.",
            param="parameters.fit",
        )
    return np.stack(arrays)
