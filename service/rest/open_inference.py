"""The Open Inference Protocol over REST, and Triton's extension for model repositories.

A request or response is JSON, optionally followed by the bytes of tensors. A header says where the
JSON ends.
"""

import binascii
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Final

import pybase64
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service.call import current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest, UnsupportedMedia
from service.messages import RequestLimits
from service.models.registry import ModelRepository, managed_repository
from service.open_inference.inference import InferAnswer, InferRequest, infer
from service.open_inference.metadata import (
    VERSION,
    Document,
    check_load,
    find_model,
    model_config,
    model_metadata,
    repository_index,
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
)
from service.rest.inputs import (
    MAX_TENSOR_COMMAS,
    SchemaT,
    media_type,
    parse_json,
    read_body,
    refuse_query,
)
from service.rest.openapi import BINARY, CALL_HEADERS, V2_ERRORS, json_content
from service.rest.requests import DialectSchema
from service.rest.responses import JSON, dump, little_endian, write_content

OCTETS: Final = "application/octet-stream"
HEADER_LENGTH: Final = "Inference-Header-Content-Length"
MAX_TENSORS: Final = 16
MAX_AXES: Final = 8
MAX_DIGITS: Final = 12
MAX_SIZE: Final = 2**63 - 1
MODEL: Final = "/v2/models/{model}"
VERSIONED: Final = "/v2/models/{model}/versions/{version}"


class InputParameters(DialectSchema):
    """How an input's elements are sent."""

    binary_data_size: Annotated[
        int | None, Field(ge=0, description="Number of its bytes after the JSON; replaces `data`.")
    ] = None


class InputBody(DialectSchema):
    """An input tensor."""

    name: str
    shape: Annotated[
        list[Annotated[int, Field(le=MAX_SIZE)]], Field(fail_fast=True, max_length=MAX_AXES)
    ]
    datatype: str
    parameters: InputParameters = InputParameters()
    data: Annotated[
        Annotated[list[Any], Field(fail_fast=True)] | None,
        Field(description="The elements, flat or nested. BYTES are strings; images are base64."),
    ] = None


class OutputParameters(DialectSchema):
    """How an output is sent."""

    binary_data: Annotated[
        bool | None,
        Field(description="Send its bytes after the JSON. Default: `binary_data_output`."),
    ] = None


class OutputBody(DialectSchema):
    """A requested output tensor."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferBody(DialectSchema):
    """One inference request."""

    id: Annotated[str | None, Field(description="Returned with the answer.")] = None
    model_name: Annotated[
        str | None, Field(description="Ignored: the path has it. KServe's client sends it.")
    ] = None
    parameters: Annotated[
        dict[str, Any],  # `Options.read` checks the values
        Field(
            description="`timeout` in microseconds, `priority` (1 goes first), `resolution`, "
            "`fit`, `normalize`, `templates`, `binary_data_output`.",
            default_factory=dict,
        ),
    ]
    inputs: Annotated[list[InputBody], Field(fail_fast=True, max_length=MAX_TENSORS)]
    outputs: Annotated[
        list[OutputBody],
        Field(
            fail_fast=True,
            max_length=MAX_TENSORS,
            description="Default: `patch_embeddings` and `cls1` of images, `text_embeddings` of "
            "texts.",
            default_factory=list,
        ),
    ]


class IndexBody(DialectSchema):
    """Which models to list."""

    ready: Annotated[bool, Field(description="Only models that are ready.")] = False


class ManageBody(DialectSchema):
    """A load takes the parameter `package`, a folder in the model repository."""

    parameters: Annotated[dict[str, Any], Field(default_factory=dict)]


INFER: Final[dict[str, Any]] = {
    "responses": {
        200: {
            "description": "JSON, followed by the bytes of binary outputs, if any.",
            "content": {JSON: {"schema": {"type": "object"}}, OCTETS: {"schema": BINARY}},
            "headers": {
                HEADER_LENGTH: {
                    "schema": {"type": "integer"},
                    "description": "Number of bytes of the JSON, if binary outputs follow it.",
                }
            },
        }
    }
    | V2_ERRORS,
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "JSON, then the bytes of each input with a `binary_data_size`, in "
            f"order. If bytes follow, the header {HEADER_LENGTH} is required.",
            "content": json_content(InferBody) | {OCTETS: {"schema": BINARY}},
        },
        "parameters": CALL_HEADERS,
    },
}


def build_inference_router(plane: DataPlane, *, is_managed: bool) -> APIRouter:
    """All routes of the protocol except health and the model repository."""
    router = APIRouter(tags=["open inference protocol"])
    metadata = server_metadata(is_managed=is_managed)

    @router.get("/v2", responses=V2_ERRORS)
    async def get_server() -> Document:
        """The server's name, version and protocol extensions."""
        return metadata

    # Added before the routes of a model, which would take it as the model `stats`.
    @router.get("/v2/models/stats", responses=V2_ERRORS)
    async def all_statistics() -> Document:
        """Statistics of all models since they were loaded."""
        return statistics(plane)

    _add_model(router, plane)
    _add_infer(router, plane)
    return router


def _add_model(router: APIRouter, plane: DataPlane) -> None:
    def metadata(model: str, version: str) -> Document:
        """Inputs and outputs of a model."""
        return model_metadata(find_model(plane, model, version))

    def config(model: str, version: str) -> Document:
        """A model's configuration, as Triton shows it."""
        return model_config(find_model(plane, model, version))

    def ready(model: str, version: str) -> Document:
        """Readiness of a model: 200, or the error that its requests would get."""
        name = find_model(plane, model, version).manifest.name
        plane.check_model_ready(name)
        return {"name": name, "ready": True}

    def stats(model: str, version: str) -> Document:
        """Statistics of one model since it was loaded."""
        return statistics(plane, model, version)

    _add_get(router, "", metadata)
    _add_get(router, "/config", config)
    _add_get(router, "/ready", ready)
    _add_get(router, "/stats", stats)


def _add_get(router: APIRouter, suffix: str, answer: Callable[[str, str], Document]) -> None:
    """Add a route of a model twice: with and without the model's version."""
    documented: dict[str, Any] = {"responses": V2_ERRORS, "description": answer.__doc__}

    @router.get(MODEL + suffix, name=f"model_{answer.__name__}", **documented)
    async def one(model: str) -> Document:
        return answer(model, "")

    @router.get(VERSIONED + suffix, name=f"version_{answer.__name__}", **documented)
    async def versioned(model: str, version: str) -> Document:
        return answer(model, version)


def _add_infer(router: APIRouter, plane: DataPlane) -> None:
    @router.post(MODEL + "/infer", **INFER)
    async def infer_model(request: Request, model: str) -> Response:
        """Embeddings of images and texts, as tensors."""
        return await _infer(request, plane, model, "")

    @router.post(VERSIONED + "/infer", **INFER)
    async def infer_version(request: Request, model: str, version: str) -> Response:
        """Embeddings of images and texts, as tensors."""
        return await _infer(request, plane, model, version)


async def _infer(request: Request, plane: DataPlane, model: str, version: str) -> Response:
    call = current_call.get()
    plane.check_open(call.caller)
    refuse_query(request.query_params.multi_items(), "the body's parameters")
    check_media(request)
    raw, header = await read_body(request), request.headers.get(HEADER_LENGTH)
    body, inputs = await plane.offload(partial(parse_infer, raw, header, plane.limits))
    is_binary = binary_outputs(body)
    call.answer_encoding = "bytes" if all(is_binary.values()) else "list"
    answer = await infer(plane, to_request(body, inputs, model, version), call)
    write = partial(write_infer, answer, body.id, is_binary)
    return await write_content(plane, write, answer.num_values)


def check_media(request: Request) -> None:
    """Check the media type of a body.

    A page of another origin may send a form or plain text without asking this server first.
    Triton's clients declare octets for JSON (asyncio), or nothing at all.

    Raises:
        UnsupportedMedia: It is neither JSON nor octets.
    """
    content_type = media_type(request)
    if content_type not in {"", JSON, OCTETS}:
        raise UnsupportedMedia(
            f"Content-Type {content_type} is not supported; send {JSON}. "
            f"With curl: -H 'Content-Type: {JSON}'.",
            param="Content-Type",
        )


def parse_infer(
    raw: bytes, header_length: str | None, limits: RequestLimits
) -> tuple[InferBody, list[InputTensor]]:
    """Parse a request into its JSON and its input tensors. CPU work.

    Args:
        raw: The whole body.
        header_length: Header with the number of bytes of the JSON; None if the body is all JSON.
        limits: Limits of one request.

    Raises:
        InvalidRequest: A field, a length or a tensor is wrong, or there is no JSON.
        RequestTooLarge: There are too many values or items.
    """
    num_json = len(raw) if header_length is None else _json_length(header_length, len(raw))
    body = parse_json(raw[:num_json], InferBody, limits, max_commas=MAX_TENSOR_COMMAS)
    rest = memoryview(raw)[num_json:]
    tensors: list[InputTensor] = []
    position = 0
    for index, tensor in enumerate(body.inputs):
        param = f"inputs[{index}]"
        head = check_head(tensor.name, tensor.datatype, tensor.shape, limits, param=param)
        size = tensor.parameters.binary_data_size
        if size is None:
            tensors.append(_read_data(head, tensor.data))
            continue
        if tensor.data is not None:
            raise InvalidRequest(
                f"{param}: give either data or binary_data_size, not both.", param=param
            )
        if position + size > len(rest):
            raise InvalidRequest(
                f"{param}: binary_data_size is {size}, but only {len(rest) - position} bytes are "
                f"left after the JSON; check {HEADER_LENGTH}.",
                code="wrong_size",
                param=f"{param}.parameters.binary_data_size",
            )
        tensors.append(read_raw(head, rest[position : position + size]))
        position += size
    if position != len(rest):
        raise InvalidRequest(
            f"{len(rest) - position} bytes after the JSON belong to no input; give each binary "
            "input the parameter binary_data_size.",
            code="wrong_size",
            param="inputs",
        )
    return body, tensors


def _json_length(text: str, num_bytes: int) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    if not is_number or int(text) > num_bytes:
        raise InvalidRequest(
            f"{HEADER_LENGTH} must be the number of bytes of the JSON at the beginning of the "
            f"body, at most {num_bytes}.",
            code="wrong_size",
            param=HEADER_LENGTH,
        )
    return int(text)


def _read_data(head: TensorHead, data: list[Any] | None) -> InputTensor:
    if data is None:
        raise InvalidRequest(
            f"{head.param} has no data: send data, or binary_data_size with the bytes after the "
            f"JSON and the header {HEADER_LENGTH}.",
            param=f"{head.param}.data",
        )
    if head.spec.datatype != "BYTES":
        return read_values(head, data)
    is_base64 = head.spec is IMAGE
    decoded = [_decode(item, is_base64, f"{head.param}.data[{i}]") for i, item in enumerate(data)]
    return read_items(head, decoded)


def _decode(item: object, is_base64: bool, param: str) -> bytes:
    if not isinstance(item, str):
        raise InvalidRequest(f"{param} must be a string{' of base64' * is_base64}.", param=param)
    if not is_base64:
        return item.encode("utf-8", "surrogatepass")
    try:
        return pybase64.b64decode(item, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            f"{param} is not base64, which JSON needs here; or send the bytes after the JSON, with "
            "binary_data_size.",
            code="invalid_base64",
            param=param,
        ) from None


def to_request(
    body: InferBody, inputs: list[InputTensor], model: str, version: str
) -> InferRequest:
    """The request for the core, without the fields that only concern the response's form."""
    return InferRequest(
        model=model,
        version=version,
        inputs=inputs,
        outputs=[output.name for output in body.outputs],
        parameters={
            name: value
            for name, value in body.parameters.items()
            if name != "binary_data_output" and value is not None
        },
    )


def binary_outputs(body: InferBody) -> dict[str, bool]:
    """Whether each output is sent as bytes after the JSON; the empty name is the default.

    Raises:
        InvalidRequest: `binary_data_output` is neither true nor false.
    """
    default = body.parameters.get("binary_data_output") or False
    if not isinstance(default, bool):
        raise InvalidRequest(
            "The parameter binary_data_output must be true or false.",
            param="parameters.binary_data_output",
        )
    named = {o.name: o.parameters.binary_data for o in body.outputs}
    return {"": default} | {n: default if own is None else own for n, own in named.items()}


def write_infer(
    answer: InferAnswer, request_id: str | None, is_binary: Mapping[str, bool]
) -> Response:
    """Write the response. CPU work: one copy of the binary outputs.

    Args:
        answer: The outputs.
        request_id: The client's id for the request, if any.
        is_binary: By output name; the empty name is the default.
    """
    outputs: list[dict[str, Any]] = []
    blobs: list[memoryview] = []
    for name, array in answer.outputs.items():
        head = {"name": name, "datatype": "FP32", "shape": array.shape}
        little = little_endian(array)
        if is_binary.get(name, is_binary[""]):
            outputs.append(head | {"parameters": {"binary_data_size": little.nbytes}})
            blobs.append(little.data.cast("B"))
        else:
            outputs.append(head | {"data": little.reshape(-1)})
    document: dict[str, Any] = {"model_name": answer.model, "model_version": VERSION}
    if request_id is not None:
        document["id"] = request_id
    content = dump(document | {"outputs": outputs})
    if not blobs:
        return Response(content, media_type=JSON)
    headers = {HEADER_LENGTH: str(len(content))}
    return Response(b"".join([content, *blobs]), media_type=OCTETS, headers=headers)


def _optional(schema: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": False, "content": json_content(schema)}}


def build_repository_router(plane: DataPlane, repository: ModelRepository | None) -> APIRouter:
    """Index, load and unload; each is refused without a repository."""
    router = APIRouter(tags=["repository"])
    errors = V2_ERRORS | {501: V2_ERRORS[500] | {"description": "`enable_management` is off."}}

    async def read(request: Request, schema: type[SchemaT]) -> SchemaT:
        check_media(request)
        raw = await read_body(request) or b"{}"
        return await plane.offload(partial(parse_json, raw, schema, plane.limits))

    @router.post("/v2/repository/index", responses=errors, openapi_extra=_optional(IndexBody))
    async def list_repository(request: Request) -> list[Document]:
        """All models that are or were served, or have a folder in the model repository."""
        managed = managed_repository(repository)
        body = await read(request, IndexBody)
        states = await plane.offload(managed.index)
        return repository_index(states, only_ready=body.ready)

    @router.post(
        "/v2/repository/models/{name}/load",
        responses=errors,
        openapi_extra=_optional(ManageBody),
        response_class=Response,
    )
    async def load_model(request: Request, name: str) -> Response:
        """Serve a package under this name; responds when the model is ready.

        A model that already has the name finishes its requests and is replaced. If the load
        fails, it stays.
        """
        managed = managed_repository(repository)
        plane.admission.check_open()
        body = await read(request, ManageBody)
        await managed.load(name, check_load(body.parameters))
        return Response()

    @router.post(
        "/v2/repository/models/{name}/unload",
        responses=errors,
        openapi_extra=_optional(ManageBody),
        response_class=Response,
    )
    async def unload_model(request: Request, name: str) -> Response:
        """Stop serving this model; its current requests are still answered."""
        managed = managed_repository(repository)
        plane.admission.check_open()
        await read(request, ManageBody)
        await managed.unload(name)
        return Response()

    return router
