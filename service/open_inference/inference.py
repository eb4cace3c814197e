"""Inference of the Open Inference Protocol: tensors to data-plane requests, answers to tensors.

Shape legend: B images, T texts, D width, h w patch grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray

from model.preprocess import Fit
from service.call import PRIORITIES, Call
from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.messages import (
    TEXT_TEMPLATES,
    EmbedImagesRequest,
    EmbedImagesResponse,
    EmbedTextsRequest,
    EmbedTextsResponse,
    ImageInput,
    ModelInfo,
    TemplateSet,
)
from service.open_inference.metadata import OUTPUTS, find_model
from service.open_inference.tensors import TEXT, InputTensor
from service.waiting import wait_both

Arrays = dict[str, NDArray[Any]]
Parameters = Mapping[str, Any]
IMAGE_DEFAULTS: Final = ("patch_embeddings", "cls1")
TEXT_DEFAULTS: Final = ("text_embeddings",)
# Triton's own parameters, which its clients send to every server. `perf_analyzer` sends
# `triton_enable_empty_final_response` with every request; every answer here is the final one.
IGNORED_PREFIX: Final = "triton_"
MAX_PRIORITY: Final = max(PRIORITIES)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Parameters of a request.

    Attributes:
        timeout: Time limit in microseconds; 0 means the server's.
        priority: 1 is served first; 0 means the default.
        resolution: As in `EmbedImagesRequest`.
        fit: As in `EmbedImagesRequest`.
        normalize: Whether to scale every embedding to unit length.
        templates: Prompt templates for each text.
    """

    timeout: int = 0
    priority: int = 0
    resolution: int | None = EmbedImagesRequest.resolution
    fit: Fit = EmbedImagesRequest.fit
    normalize: bool = EmbedTextsRequest.normalize
    templates: TemplateSet = TEXT_TEMPLATES

    @classmethod
    def read(cls, parameters: Parameters) -> Self:
        """Check and read parameters.

        Raises:
            InvalidRequest: One is unknown or has an invalid value.
        """
        known = {n: v for n, v in parameters.items() if not n.startswith(IGNORED_PREFIX)}
        for name, value in known.items():
            if name not in RULES:
                raise InvalidRequest(
                    f"The parameter {name[:100]!r} is unknown; known are {', '.join(RULES)}.",
                    code="unknown_field",
                    param=f"parameters.{name[:100]}",
                )
            check, meaning = RULES[name]
            if not check(value):
                raise InvalidRequest(
                    f"The parameter {name} must be {meaning}.", param=f"parameters.{name}"
                )
        return cls(**known)

    def apply(self, call: Call) -> None:
        """Set the deadline and the priority of a call."""
        if self.timeout:
            call.shorten(call.started + self.timeout / 1e6)
        if self.priority:
            call.priority = self.priority


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_one_of(*choices: Any) -> Any:
    return lambda value: isinstance(value, str) and value in choices


# By parameter: the check of its value, and how the error describes a valid one.
RULES: Final[Mapping[str, tuple[Any, str]]] = {
    "timeout": (
        lambda value: _is_whole(value) and 0 <= value < 2**63,
        "a whole number of microseconds, at least 0",
    ),
    "priority": (
        lambda value: _is_whole(value) and 0 <= value <= MAX_PRIORITY,
        f"a whole number from 0 to {MAX_PRIORITY}; 1 goes first, and 0 is the default",
    ),
    "resolution": (
        lambda value: _is_whole(value) and 0 < value < 2**31,
        "a whole number of pixels",
    ),
    "fit": (_is_one_of(*get_args(Fit)), "squash or aspect"),
    "normalize": (lambda value: isinstance(value, bool), "true or false"),
    "templates": (_is_one_of(*get_args(TemplateSet)), "none or tcl"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """One request. An empty model is the default one; no outputs mean the default outputs."""

    model: str = ""
    version: str = ""
    inputs: Sequence[InputTensor]
    outputs: Sequence[str] = ()
    parameters: Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class InferAnswer:
    """Outputs in the requested order, float32."""

    model: str
    outputs: Arrays

    @property
    def num_values(self) -> int:
        """Number of values in all outputs."""
        return sum(array.size for array in self.outputs.values())


async def infer(plane: DataPlane, request: InferRequest, call: Call) -> InferAnswer:
    """Answer one request.

    Raises:
        InvalidRequest: An input, an output or a parameter is invalid.
        ServiceError: As the data plane raises it.
    """
    info = find_model(plane, request.model, request.version)
    inputs = _by_name(request.inputs)
    options = Options.read(request.parameters)
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
            "Give one of image, pixels and pixel_values; send the others in separate requests.",
            param="inputs",
        )
    return inputs


def _check_outputs(
    asked: Sequence[str], inputs: Mapping[str, InputTensor], info: ModelInfo
) -> tuple[str, ...]:
    """The outputs to return, in order: the requested ones, or the defaults for the inputs.

    `perf_analyzer` requests every output of the metadata, whatever the inputs. Such a request gets
    the outputs that its inputs have.
    """
    has_text, has_images = TEXT.name in inputs, bool(inputs.keys() - {TEXT.name})
    usual = (*(IMAGE_DEFAULTS if has_images else ()), *(TEXT_DEFAULTS if has_text else ()))
    if not asked:
        return tuple(name for name in usual if OUTPUTS[name] in info.outputs)
    known = [name for name, ours in OUTPUTS.items() if ours in info.outputs]
    given = [name for name in known if (has_text if OUTPUTS[name] == "text" else has_images)]
    if len(asked) == len(known) and set(asked) == set(known):
        return tuple(name for name in asked if name in given)
    for index, name in enumerate(asked):
        param = f"outputs[{index}]"
        if name not in known:
            raise InvalidRequest(
                f"{param}: {info.manifest.name} has no output {name[:100]!r}; it has "
                f"{', '.join(known)}.",
                code="unknown_output",
                param=param,
            )
        if name not in given:
            raise InvalidRequest(
                f"{param}: {name} needs {'texts' if has_images else 'images'}, and the request has "
                "none.",
                param=param,
            )
        if name in asked[:index]:
            raise InvalidRequest(f"{param}: {name} is requested twice.", param=param)
    return tuple(asked)


def _images_request(
    model: str, inputs: Mapping[str, InputTensor], names: Sequence[str], options: Options
) -> EmbedImagesRequest | None:
    """None if no output of images is requested."""
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
    """None if no output of texts is requested."""
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
    """Each output of all images as float32, such as [B, h, w, D] or [B, D]."""
    rows = answer.embeddings
    return {
        name: _stack([row[ours].astype(np.float32, copy=False) for row in rows])
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
            "The images have patch grids of different shapes, which one tensor cannot hold: use "
            "fit squash, or send one image per request.",
            param="parameters.fit",
        )
    return np.stack(arrays)
