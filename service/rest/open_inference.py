"""The Open Inference Protocol over REST."""

import binascii
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Final, Literal, TypeVar

import numpy as np
import pybase64
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from service.call import current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.messages import RequestLimits
from service.models.registry import ModelRepository
from service.open_inference.inference import InferAnswer, InferRequest, infer
from service.open_inference.metadata import (
    VERSION,
    ModelMetadata,
    find_model,
    model_metadata,
    server_metadata,
    statistics,
)
from service.open_inference.tensors import (
    IMAGE,
    InputTensor,
    TensorHead,
    check_head,
    read_items,
    read_raw,
    read_values,
    wrong_count,
)
from service.rest.connection import in_time, until_left
from service.rest.errors import invalid_fields
from service.rest.inputs import parse_json
from service.rest.openapi import BINARY, CALL_HEADERS, REF, V2_ERRORS, json_body
from service.rest.requests import Schema
from service.rest.responses import JSON, dump

# What requests and answers of the Open Inference Protocol hold as JSON.

MAX_TENSORS = 16
MAX_AXES = 8
Value = bool | int | float | str


class InputParameters(Schema):
    """How an input's elements are sent."""

    binary_data_size: Annotated[
        int | None, Field(ge=0, description="Bytes of it behind the JSON, in place of `data`.")
    ] = None
    content_type: Annotated[
        Literal["base64"] | None,
        Field(description="Of BYTES in `data`. Images are base64 there, with or without this."),
    ] = None


class InputBody(Schema):
    """An input tensor."""

    name: str
    shape: Annotated[list[int], Field(max_length=MAX_AXES)]
    datatype: str
    parameters: InputParameters = InputParameters()
    data: Annotated[
        list[Any] | None,
        Field(description="The elements, flat or nested; BYTES as strings: images as base64."),
    ] = None


class OutputParameters(Schema):
    """How an output is sent."""

    binary_data: Annotated[
        bool | None, Field(description="Behind the JSON. Default: `binary_data_output`.")
    ] = None
    classification: Annotated[
        int | None, Field(description="Is not supported: the outputs are embeddings.")
    ] = None


class OutputBody(Schema):
    """An output tensor that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferBody(Schema):
    """One inference request."""

    id: Annotated[str | None, Field(description="Comes back with the answer.")] = None
    parameters: Annotated[
        dict[str, Value],
        Field(
            description="`timeout` in microseconds, `priority` (1 goes first), `resolution`, "
            "`fit`, `normalize`, `templates`, `output_datatype` (FP32 or FP16), "
            "`binary_data_output`.",
            default_factory=dict,
        ),
    ]
    inputs: Annotated[list[InputBody], Field(max_length=MAX_TENSORS)]
    outputs: Annotated[
        list[OutputBody],
        Field(
            max_length=MAX_TENSORS,
            description="Default: `patch_embeddings` and `cls1` of images, `text_embeddings` of "
            "texts.",
            default_factory=list,
        ),
    ]


class AnswerParameters(BaseModel):
    """How an output was sent."""

    binary_data_size: int


class OutputTensor(BaseModel):
    """An output tensor; `data` is flat, and missing where its bytes stand behind the JSON."""

    name: str
    datatype: Literal["FP32", "FP16"]
    shape: list[int]
    parameters: AnswerParameters | None = None
    data: list[float] | None = None


class InferAnswerBody(BaseModel):
    """The answer to an inference request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives; -1 may be any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadataBody(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadataBody(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class ConfigTensor(BaseModel):
    """A tensor in a model's configuration, with all its axes."""

    name: str
    data_type: str
    dims: list[int]


class ConfigInput(ConfigTensor):
    """An input; a request may be without it."""

    optional: Literal[True] = True


class ModelConfigBody(BaseModel):
    """A model in the terms of a configuration file."""

    name: str
    platform: str
    backend: str
    max_batch_size: Literal[0] = 0
    input: list[ConfigInput]
    output: list[ConfigTensor]


class Duration(BaseModel):
    """How often something was done, and nanoseconds in all."""

    count: int
    ns: int


class InferStatistics(BaseModel):
    """What a model's requests took."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(BaseModel):
    """What batches of one size took."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatisticsBody(BaseModel):
    """What one model has done since it was loaded."""

    name: str
    version: str
    last_inference: int = Field(description="Milliseconds since the epoch; 0 for never.")
    inference_count: int = Field(description="Images and texts that were answered.")
    execution_count: int = Field(description="Batches that were computed.")
    inference_stats: InferStatistics
    batch_stats: list[BatchStatistics]


class StatisticsBody(BaseModel):
    """What models have done."""

    model_stats: list[ModelStatisticsBody]


class ModelReadyBody(BaseModel):
    """The model answers requests."""

    name: str
    ready: Literal[True] = True


# Reads an inference request: JSON, and behind it the bytes of tensors that are not in the JSON.

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
MAX_DIGITS: Final = 12


def parse_infer(
    raw: bytes, header_length: str | None, limits: RequestLimits
) -> tuple[InferBody, tuple[InputTensor, ...]]:
    """The JSON of a request, and its inputs wherever their elements stand. CPU work.

    Args:
        raw: The whole body.
        header_length: Bytes of the JSON, as the HTTP header says; None where there is nothing else.
        limits: Of one request.

    Raises:
        InvalidRequest: A length or a tensor is wrong; the message says which.
        RequestTooLarge: There are too many values or items.
        ValidationError: A field is wrong or unknown, or the JSON is none.
    """
    num_json = len(raw) if header_length is None else _json_length(header_length, len(raw))
    body = parse_json(raw[:num_json], InferBody)
    rest = memoryview(raw)[num_json:]
    tensors = []
    position = 0
    for index, tensor in enumerate(body.inputs):
        param = f"inputs[{index}]"
        head = check_head(tensor.name, tensor.datatype, tensor.shape, limits, param=param)
        size = tensor.parameters.binary_data_size
        if size is None:
            tensors.append(_read_data(head, tensor))
            continue
        if tensor.data is not None:
            raise InvalidRequest(
                f"{param}: give either data or binary_data_size, not both.", param=param
            )
        if position + size > len(rest):
            raise InvalidRequest(
                f"{param}: binary_data_size is {size}, and {len(rest) - position} bytes are left "
                f"behind the JSON, which {HEADER_LENGTH} ends.",
                code="wrong_size",
                param=f"{param}.parameters.binary_data_size",
            )
        tensors.append(read_raw(head, rest[position : position + size]))
        position += size
    if position != len(rest):
        raise InvalidRequest(
            f"{len(rest) - position} bytes behind the JSON belong to no input; each has its "
            "parameter binary_data_size.",
            code="wrong_size",
            param="inputs",
        )
    return body, tuple(tensors)


def to_request(
    body: InferBody, inputs: tuple[InputTensor, ...], model: str, version: str
) -> InferRequest:
    """The request for the core, without what only says how the answer is written.

    Raises:
        InvalidRequest: An output is asked for in a way that is not supported.
    """
    for index, output in enumerate(body.outputs):
        if output.parameters.classification is not None:
            raise InvalidRequest(
                f"outputs[{index}]: classification is not supported, for the outputs are "
                "embeddings: compare cls1 with text_embeddings of the labels instead.",
                code="not_supported",
                param=f"outputs[{index}].parameters.classification",
            )
    parameters = {k: v for k, v in body.parameters.items() if k != "binary_data_output"}
    return InferRequest(
        model=model,
        version=version,
        inputs=inputs,
        outputs=tuple(output.name for output in body.outputs),
        parameters=parameters,
    )


def binary_outputs(body: InferBody) -> dict[str, bool]:
    """Which outputs are to be sent behind the JSON; the empty name is for those not named.

    Raises:
        InvalidRequest: `binary_data_output` is neither true nor false.
    """
    default = body.parameters.get("binary_data_output", False)
    if not isinstance(default, bool):
        raise InvalidRequest(
            "The parameter binary_data_output is true or false.",
            param="parameters.binary_data_output",
        )
    named = {o.name: o.parameters.binary_data for o in body.outputs}
    return {"": default} | {n: default if own is None else own for n, own in named.items()}


def _json_length(text: str, num_bytes: int) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    if not is_number or int(text) > num_bytes:
        raise InvalidRequest(
            f"{HEADER_LENGTH} is the number of bytes of the JSON that the body begins with, and "
            f"the body has {num_bytes}.",
            code="wrong_size",
            param=HEADER_LENGTH,
        )
    return int(text)


def _read_data(head: TensorHead, tensor: InputBody) -> InputTensor:
    if tensor.data is None:
        raise InvalidRequest(
            f"{head.param} has no data: give data, or binary_data_size and the bytes behind the "
            f"JSON, with the header {HEADER_LENGTH}.",
            param=f"{head.param}.data",
        )
    if head.spec.datatype != "BYTES":
        return read_values(head, tensor.data)
    if len(tensor.data) != head.num_elements:
        raise wrong_count(head, len(tensor.data))
    is_base64 = head.spec is IMAGE or tensor.parameters.content_type == "base64"
    return read_items(
        head,
        [_decode(item, is_base64, f"{head.param}.data[{i}]") for i, item in enumerate(tensor.data)],
    )


def _decode(item: object, is_base64: bool, param: str) -> bytes:
    if not isinstance(item, str):
        raise InvalidRequest(f"{param} is a string{' of base64' * is_base64}.", param=param)
    if not is_base64:
        return item.encode("utf-8", "surrogatepass")
    try:
        return pybase64.b64decode(item, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            f"{param} is not base64, as BYTES are written in JSON here; or send it behind the JSON "
            "by binary_data_size.",
            code="invalid_base64",
            param=param,
        ) from None


# Writes the answer to an inference request: JSON, and behind it the bytes of binary outputs.


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """A body, and how many of its bytes are JSON; None where all are."""

    content: bytes
    num_json: int | None


def write_infer(
    answer: InferAnswer, request_id: str | None, is_binary: Mapping[str, bool]
) -> WrittenAnswer:
    """Write an answer. CPU work: one copy of what is binary.

    Args:
        answer: What is sent.
        request_id: As the caller gave it, if so.
        is_binary: By output; the empty name is for those that are not there.

    Raises:
        InvalidRequest: float16 as JSON, which the protocol does not have.
    """
    outputs: list[dict[str, Any]] = []
    blobs: list[memoryview] = []
    for name, array in answer.outputs.items():
        datatype = "FP16" if array.dtype == np.float16 else "FP32"
        head = {"name": name, "datatype": datatype, "shape": array.shape}
        little = _little_endian(array)
        if is_binary.get(name, is_binary[""]):
            outputs.append(head | {"parameters": {"binary_data_size": little.nbytes}})
            blobs.append(little.data.cast("B"))
        elif datatype == "FP16":
            raise InvalidRequest(
                f"{name}: FP16 has no form in JSON; ask for it with binary_data.",
                param="parameters.output_datatype",
            )
        else:
            outputs.append(head | {"data": little.reshape(-1)})
    document: dict[str, Any] = {"model_name": answer.model, "model_version": VERSION}
    if request_id is not None:
        document["id"] = request_id
    content = dump(document | {"outputs": outputs})
    if not blobs:
        return WrittenAnswer(content, None)
    return WrittenAnswer(b"".join([content, *blobs]), len(content))


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))


# What the routes of the Open Inference Protocol tell about themselves in the OpenAPI document.

OCTETS: Final = "application/octet-stream"
INFER: Final[dict[str, Any]] = {
    "responses": {
        200: {
            "description": "JSON, or with binary outputs JSON and their bytes behind it.",
            "content": {
                JSON: {"schema": {"$ref": REF.format(model=InferAnswerBody.__name__)}},
                OCTETS: {"schema": BINARY},
            },
            "headers": {
                "Inference-Header-Content-Length": {
                    "schema": {"type": "integer"},
                    "description": "Bytes of the JSON, where others follow it.",
                }
            },
        }
    }
    | V2_ERRORS,
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "JSON; or JSON and behind it the bytes of each input that has a "
            "`binary_data_size`, in order, with the header Inference-Header-Content-Length.",
            "content": {
                JSON: {"schema": {"$ref": REF.format(model=InferBody.__name__)}},
                OCTETS: {"schema": BINARY},
            },
        },
        "parameters": CALL_HEADERS,
    },
}


# Routes of the Open Inference Protocol: read, ask the core, write.
#
# Each route of a model is there twice, with and without the model's version.

WRITTEN_AT_ONCE = 2048
CONFIG_TYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32"}
MODEL = "/v2/models/{model}"
VERSIONED = "/v2/models/{model}/versions/{version}"


def build_inference_router(plane: DataPlane, *, is_managed: bool) -> APIRouter:
    """All routes of the protocol but those of health and of the model repository."""
    router = APIRouter(tags=["open inference protocol"])
    _add_server(router, plane, is_managed)
    _add_model(router, plane)
    _add_infer(router, plane)
    return router


def _add_server(router: APIRouter, plane: DataPlane, is_managed: bool) -> None:
    @router.get("/v2", responses=V2_ERRORS)
    async def server() -> ServerMetadataBody:
        """What the server is, and which extensions of the protocol it has."""
        return ServerMetadataBody.model_validate(asdict(server_metadata(is_managed=is_managed)))

    # Before the routes of a model, of which it would be one that is called stats.
    @router.get("/v2/models/stats", responses=V2_ERRORS)
    async def all_statistics() -> StatisticsBody:
        """What all models have done since they were loaded."""
        return StatisticsBody.model_validate(statistics(plane))


def _add_model(router: APIRouter, plane: DataPlane) -> None:
    def metadata(model: str, version: str) -> ModelMetadataBody:
        """What a model takes and gives."""
        info = find_model(plane, model, version)
        return ModelMetadataBody.model_validate(asdict(model_metadata(info)))

    def config(model: str, version: str) -> ModelConfigBody:
        """What a model takes and gives, in the terms of a configuration file."""
        return _to_config(model_metadata(find_model(plane, model, version)))

    def ready(model: str, version: str) -> ModelReadyBody:
        """Whether a model answers requests: 200, or the error that they would get."""
        name = find_model(plane, model, version).manifest.name
        plane.check_model_ready(name)
        return ModelReadyBody(name=name)

    def model_statistics(model: str, version: str) -> StatisticsBody:
        """What one model has done since it was loaded."""
        return StatisticsBody.model_validate(statistics(plane, model, version))

    _add_get(router, "", metadata, ModelMetadataBody)
    _add_get(router, "/config", config, ModelConfigBody)
    _add_get(router, "/ready", ready, ModelReadyBody)
    _add_get(router, "/stats", model_statistics, StatisticsBody)


def _add_get(
    router: APIRouter, suffix: str, answer: Callable[[str, str], BaseModel], body: type[BaseModel]
) -> None:
    told: dict[str, Any] = {
        "responses": V2_ERRORS,
        "response_model": body,
        "description": answer.__doc__,
        "name": answer.__name__,
    }

    @router.get(MODEL + suffix, **told)
    async def one(model: str) -> BaseModel:
        return answer(model, "")

    @router.get(VERSIONED + suffix, **told)
    async def versioned(model: str, version: str) -> BaseModel:
        return answer(model, version)


def _add_infer(router: APIRouter, plane: DataPlane) -> None:
    @router.post(MODEL + "/infer", **INFER)
    async def infer_model(request: Request, model: str) -> Response:
        """Embeddings of images and texts, as tensors."""
        return await _infer(plane, request, model, "")

    @router.post(VERSIONED + "/infer", **INFER)
    async def infer_version(request: Request, model: str, version: str) -> Response:
        """Embeddings of images and texts, as tensors."""
        return await _infer(plane, request, model, version)


async def _infer(plane: DataPlane, request: Request, model: str, version: str) -> Response:
    plane.check_open()
    for name in request.query_params:
        raise InvalidRequest(
            f"{name}: write it in the body's parameters and not in the query.",
            code="unknown_field",
            param=name,
        )
    raw = await request.body()
    parse = partial(parse_infer, raw, request.headers.get(HEADER_LENGTH), plane.limits)
    try:
        body, inputs = await in_time(request, plane.offload(parse))
    except ValidationError as error:
        raise invalid_fields(error) from None
    is_binary = binary_outputs(body)
    message = to_request(body, inputs, model, version)
    call = current_call.get()
    answer = await until_left(request, infer(plane, message, call))
    write = partial(write_infer, answer, body.id, is_binary)
    with call.stage("post"):
        # A thread's wake-up and its way back cost more than writing a few vectors.
        is_small = answer.num_values <= WRITTEN_AT_ONCE
        written = write() if is_small else await plane.offload(write)
    if written.num_json is None:
        return Response(written.content, media_type=JSON)
    return Response(
        written.content, media_type=OCTETS, headers={HEADER_LENGTH: str(written.num_json)}
    )


def _to_config(metadata: ModelMetadata) -> ModelConfigBody:
    return ModelConfigBody(
        name=metadata.name,
        platform=metadata.platform,
        backend=metadata.backend,
        input=[
            ConfigInput(name=s.name, data_type=CONFIG_TYPES[s.datatype], dims=list(s.shape))
            for s in metadata.inputs
        ],
        output=[
            ConfigTensor(name=s.name, data_type=CONFIG_TYPES[s.datatype], dims=list(s.shape))
            for s in metadata.outputs
        ],
    )


# Routes that change what is served, as Triton's model repository extension has them.
#
# They are there only where the settings say so.

SchemaT = TypeVar("SchemaT", bound=Schema)


class IndexBody(Schema):
    """What to list."""

    ready: Annotated[bool, Field(description="Only models that answer now.")] = False


class LoadParameters(Schema):
    """How to load."""

    package: Annotated[
        str | None,
        Field(
            description="Folder below the model repository. Without it: where the model came from "
            "last, else the folder of its name."
        ),
    ] = None


class LoadBody(Schema):
    """What to load."""

    parameters: LoadParameters = LoadParameters()


class UnloadParameters(Schema):
    """What Triton's clients send with every unload; no model here has dependents."""

    unload_dependents: bool = False


class UnloadBody(Schema):
    """How to unload."""

    parameters: UnloadParameters = UnloadParameters()


class ModelIndexEntry(BaseModel):
    """One model that is served, or could be."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    reason: str = Field(description="Why the last load failed, if it did.")


def build_repository_router(plane: DataPlane, repository: ModelRepository) -> APIRouter:
    """Index, load and unload."""
    router = APIRouter(tags=["repository"])

    @router.post("/v2/repository/index", responses=V2_ERRORS, openapi_extra=json_body(IndexBody))
    async def index(request: Request) -> list[ModelIndexEntry]:
        """Every model that is served, was served, or lies in the model repository."""
        body = await _read(request, IndexBody)
        states = await plane.offload(repository.index)
        return [
            ModelIndexEntry(
                name=state.name, version=VERSION, state=state.state, reason=state.reason
            )
            for state in states
            if state.state == "READY" or not body.ready
        ]

    @router.post(
        "/v2/repository/models/{name}/load",
        responses=V2_ERRORS,
        openapi_extra=json_body(LoadBody),
        response_class=Response,
    )
    async def load(request: Request, name: str) -> Response:
        """Serve a package under this name; the answer comes once it answers requests.

        What had the name until then finishes the requests that it has. If the load fails, it stays.
        """
        plane.gate.check()
        body = await _read(request, LoadBody)
        await repository.load(name, body.parameters.package)
        return Response()

    @router.post(
        "/v2/repository/models/{name}/unload",
        responses=V2_ERRORS,
        openapi_extra=json_body(UnloadBody),
        response_class=Response,
    )
    async def unload(request: Request, name: str) -> Response:
        """Serve this model no longer; requests that it has are still answered."""
        plane.gate.check()
        await _read(request, UnloadBody)
        await repository.unload(name)
        return Response()

    return router


async def _read(request: Request, schema: type[SchemaT]) -> SchemaT:
    """The JSON body, which may be left out; its media type is not asked for: Triton's name none."""
    try:
        return schema.model_validate_json(await request.body() or b"{}", strict=True)
    except ValidationError as error:
        raise invalid_fields(error) from None
