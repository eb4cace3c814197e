"""Inference of the Open Inference Protocol: tensors to data-plane requests, answers to tensors.

Shape legend: B images, T texts, D width, h w patch grid.
"""

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from model.preprocess import Fit
from service.call import PRIORITIES, Call
from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.messages import (
    TEXT_TEMPLATES,
    EmbedImagesRequest,
    EmbedTextsRequest,
    ImageInput,
    ModelInfo,
    TemplateSet,
)
from service.open_inference.metadata import OUTPUTS, find_model
from service.open_inference.tensors import TEXT, InputTensor
from service.schema import DialectSchema, invalid_fields
from service.waiting import wait_all

SchemaT = TypeVar("SchemaT", bound=BaseModel)
Arrays = dict[str, NDArray[Any]]
IMAGE_DEFAULTS: Final = ("patch_embeddings", "cls1")
TEXT_OUTPUT: Final = "text_embeddings"
# Triton's own parameters, which its clients send to every server. `perf_analyzer` sends
# `triton_enable_empty_final_response` with every request; every answer here is the final one.
IGNORED_PREFIX: Final = "triton_"


class Parameters(DialectSchema):
    """Parameters of a request."""

    timeout: int = Field(default=0, ge=0, lt=2**63)
    """Time limit in microseconds; 0 is the server's."""
    priority: int = Field(default=0, ge=0, le=max(PRIORITIES))
    """1 goes first; 0 is the default."""
    resolution: int | None = Field(default=EmbedImagesRequest.resolution, gt=0, lt=2**31)
    """As in `/v1`."""
    fit: Fit = EmbedImagesRequest.fit
    normalize: bool = True
    templates: TemplateSet = TEXT_TEMPLATES

    @model_validator(mode="before")
    @classmethod
    def _leave_out_ignored(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {n: one for n, one in value.items() if not str(n).startswith(IGNORED_PREFIX)}

    def apply(self, call: Call) -> None:
        """Set the deadline and the priority of a call."""
        if self.timeout:
            call.shorten(call.started + self.timeout / 1e6)
        if self.priority:
            call.priority = self.priority


class LoadParameters(DialectSchema):
    """Parameters of a load."""

    package: str | None = None
    """A folder in the model repository."""


def read_parameters(schema: type[SchemaT], values: Mapping[str, Any]) -> SchemaT:
    """Check and read parameters.

    Raises:
        InvalidRequest: One is unknown or has an invalid value.
    """
    try:
        return schema.model_validate(dict(values), strict=True)
    except ValidationError as error:
        raise invalid_fields(error, "parameters") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """One request. An empty model is the default one; no outputs mean the default outputs."""

    model: str = ""
    version: str = ""
    inputs: Sequence[InputTensor]
    outputs: Sequence[str] = ()
    parameters: Parameters = field(default_factory=Parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferAnswer:
    """Outputs in the requested order, float32."""

    model: str
    outputs: Arrays


async def infer(plane: DataPlane, request: InferRequest, call: Call) -> InferAnswer:
    """Answer one request.

    Raises:
        InvalidRequest: An input or an output is invalid.
        ServiceError: As the data plane raises it.
    """
    info = find_model(plane, request.model, request.version)
    inputs = _by_name(request.inputs)
    names = _check_outputs(request.outputs, inputs, info)
    request.parameters.apply(call)
    work: list[Coroutine[Any, Any, Arrays]] = []
    texts = inputs.pop(TEXT.name, None)
    if texts is not None and TEXT_OUTPUT in names:
        work.append(_embed_texts(plane, texts, request, call))
    if image_outputs := [name for name in names if name != TEXT_OUTPUT]:
        (images,) = inputs.values()
        work.append(_embed_images(plane, images, image_outputs, request, call=call))
    arrays: Arrays = {}
    for found in await wait_all(work):
        arrays |= found
    return InferAnswer(model=info.manifest.name, outputs={name: arrays[name] for name in names})


def _by_name(tensors: Sequence[InputTensor]) -> dict[str, InputTensor]:
    inputs = {tensor.name: tensor for tensor in tensors}
    if not inputs:
        raise InvalidRequest(
            "inputs is empty; send an image or a text.", code="empty_list", param="inputs"
        )
    if len(inputs) != len(tensors) or len(inputs.keys() - {TEXT.name}) > 1:
        raise InvalidRequest(
            "Give each input once, and one of image, pixels and pixel_values; send the others in "
            "separate requests.",
            param="inputs",
        )
    return inputs


def _check_outputs(
    asked: Sequence[str], inputs: Mapping[str, InputTensor], info: ModelInfo
) -> Sequence[str]:
    """The outputs to return, in order: the requested ones, or the defaults for the inputs.

    `perf_analyzer` requests every output of the metadata, whatever the inputs. Such a request gets
    the outputs that its inputs have.
    """
    has_text, has_images = TEXT.name in inputs, bool(inputs.keys() - {TEXT.name})
    known = [name for name, ours in OUTPUTS.items() if ours in info.outputs]
    given = [name for name in known if (has_text if name == TEXT_OUTPUT else has_images)]
    if not asked:
        return [name for name in (*IMAGE_DEFAULTS, TEXT_OUTPUT) if name in given]
    if len(asked) == len(known) and set(asked) == set(known):
        return [name for name in asked if name in given]
    for index, name in enumerate(asked):
        if name not in given or name in asked[:index]:
            raise InvalidRequest(
                f"outputs[{index}]: {name[:100]!r} must be one of {', '.join(given)}, the outputs "
                f"of {info.manifest.name} for these inputs, each at most once.",
                code="invalid_field" if name in known else "unknown_output",
                param=f"outputs[{index}]",
            )
    return asked


async def _embed_images(
    plane: DataPlane,
    images: InputTensor,
    names: Sequence[str],
    request: InferRequest,
    *,
    call: Call,
) -> Arrays:
    """Each output of all images as float32, such as [B, h, w, D] or [B, D]."""
    parameters = request.parameters
    message = EmbedImagesRequest(
        images=cast("tuple[ImageInput, ...]", tuple(images.elements)),
        model=request.model or None,
        outputs=tuple(OUTPUTS[name] for name in names),
        normalize=parameters.normalize,
        resolution=parameters.resolution,
        fit=parameters.fit,
    )
    answer = await plane.embed_images(message, call)
    return {name: _stack([row[OUTPUTS[name]] for row in answer.embeddings]) for name in names}


def _stack(arrays: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    if len({array.shape for array in arrays}) > 1:
        raise InvalidRequest(
            "The images have patch grids of different shapes, which one tensor cannot hold: use "
            "fit squash, or send one image per request.",
            param="parameters.fit",
        )
    if len(arrays) == 1:  # without a copy
        return arrays[0][None].astype(np.float32, copy=False)
    return np.stack(arrays, dtype=np.float32)


async def _embed_texts(
    plane: DataPlane, texts: InputTensor, request: InferRequest, call: Call
) -> Arrays:
    """The output of texts, [T, D]."""
    message = EmbedTextsRequest(
        texts=tuple(_decode_text(item, index) for index, item in enumerate(texts.elements)),
        model=request.model or None,
        templates=request.parameters.templates,
        normalize=request.parameters.normalize,
    )
    answer = await plane.embed_texts(message, call)
    return {TEXT_OUTPUT: answer.embeddings_TD}


def _decode_text(item: bytes, index: int) -> str:
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError:
        param = f"texts[{index}]"
        raise InvalidRequest(f"{param} is not UTF-8.", code="invalid_text", param=param) from None
