"""The Open Inference Protocol over REST, and Triton's extension for model repositories.

A request or response is JSON, optionally followed by the bytes of tensors. A header says where the
JSON ends.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service.call import current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.messages import ModelInfo, RequestLimits
from service.models.registry import ModelRepository, managed_repository
from service.open_inference import inference, metadata
from service.open_inference.tensors import IMAGE, INPUTS, InputTensor, TensorHead, read_tensor
from service.rest.inputs import (
    MAX_TENSOR_COMMAS,
    SchemaT,
    decode_base64,
    media_type,
    parse_json,
    query_of,
    read_body,
    refuse_query,
    unsupported,
)
from service.rest.openapi import BINARY, V2_ERRORS, json_content, json_route
from service.rest.responses import JSON, dump, little_endian, write_content
from service.schema import DialectSchema

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

    binary_data_size: int | None = Field(default=None, ge=0)
    """Number of its bytes after the JSON; replaces `data`."""


class InputBody(DialectSchema):
    """An input tensor."""

    name: str
    shape: list[Annotated[int, Field(le=MAX_SIZE)]] = Field(fail_fast=True, max_length=MAX_AXES)
    datatype: str
    parameters: InputParameters = InputParameters()
    data: Annotated[list[Any], Field(fail_fast=True)] | None = None
    """The elements, flat or nested. BYTES are strings; images are base64."""


class OutputParameters(DialectSchema):
    """How an output is sent."""

    binary_data: bool | None = None
    """Send its bytes after the JSON. Default: `binary_data_output`."""


class OutputBody(DialectSchema):
    """A requested output tensor."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferParameters(inference.Parameters):
    """Parameters of a request, and how its outputs are sent."""

    binary_data_output: bool = False
    """Send the bytes of outputs after the JSON."""


class InferBody(DialectSchema):
    """One inference request."""

    id: str | None = None
    """Returned with the answer."""
    model_name: str | None = None
    """Ignored: the path has it. KServe's client sends it."""
    parameters: InferParameters = InferParameters()
    inputs: list[InputBody] = Field(fail_fast=True, max_length=MAX_TENSORS)
    outputs: list[OutputBody] = Field(default=[], fail_fast=True, max_length=MAX_TENSORS)
    """Default: `patch_embeddings` and `cls1` of images, `text_embeddings` of texts."""


class IndexBody(DialectSchema):
    """Which models to list."""

    ready: bool = False
    """Only models that are ready."""


class LoadBody(DialectSchema):
    """What to load."""

    parameters: inference.LoadParameters = inference.LoadParameters()


class UnloadBody(DialectSchema):
    """Parameters of other servers, which are ignored."""

    parameters: dict[str, Any] = Field(default={})


INFER: Final = json_route(
    json_content(InferBody) | {OCTETS: {"schema": BINARY}},
    {
        "description": "JSON, followed by the bytes of binary outputs, if any.",
        "content": {JSON: {"schema": {"type": "object"}}, OCTETS: {"schema": BINARY}},
        "headers": {
            HEADER_LENGTH: {
                "schema": {"type": "integer"},
                "description": "Number of bytes of the JSON, if binary outputs follow it.",
            }
        },
    },
    text="JSON, then the bytes of each input with a `binary_data_size`, in order. If bytes follow, "
    f"the header {HEADER_LENGTH} is required.",
    errors=V2_ERRORS,
)


def build_inference_router(plane: DataPlane, *, is_managed: bool) -> APIRouter:
    """All routes of the protocol except health and the model repository."""
    router = APIRouter(tags=["open inference protocol"])
    server = metadata.server_metadata(is_managed=is_managed)

    @router.get("/v2", responses=V2_ERRORS)
    async def get_server() -> metadata.Document:
        """The server's name, version and protocol extensions."""
        return server

    # Added before the routes of a model, which would take it as the model `stats`.
    @router.get("/v2/models/stats", responses=V2_ERRORS)
    async def all_statistics() -> metadata.Document:
        """Statistics of all models since they were loaded."""
        return metadata.statistics(plane)

    def ready(info: ModelInfo) -> metadata.Document:
        plane.check_model_ready(info.manifest.name)
        return {"name": info.manifest.name, "ready": True}

    def stats(info: ModelInfo) -> metadata.Document:
        return metadata.statistics(plane, info.manifest.name)

    for suffix, answer, text in (
        ("", metadata.model_metadata, "Inputs and outputs of a model."),
        ("/config", metadata.model_config, "A model's configuration, as Triton shows it."),
        ("/ready", ready, "Readiness of a model: 200, or the error that its requests would get."),
        ("/stats", stats, "Statistics of one model since it was loaded."),
    ):
        described: dict[str, Any] = {"responses": V2_ERRORS, "description": text}
        _add_get(
            router,
            suffix,
            lambda *model, a=answer: a(metadata.find_model(plane, *model)),
            described,
        )
    _add_infer(router, plane)
    return router


def _add_get(
    router: APIRouter,
    suffix: str,
    answer: Callable[[str, str], metadata.Document],
    described: dict[str, Any],
) -> None:
    """Add a route of a model twice: with and without the model's version."""
    name = suffix[1:] or "metadata"

    @router.get(MODEL + suffix, name=f"model_{name}", **described)
    async def one(model: str) -> metadata.Document:
        return answer(model, "")

    @router.get(VERSIONED + suffix, name=f"version_{name}", **described)
    async def versioned(model: str, version: str) -> metadata.Document:
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
    refuse_query(query_of(request), "the body's parameters")
    check_media(request)
    raw, header = await read_body(request), request.headers.get(HEADER_LENGTH)
    body, inputs = await plane.offload(partial(parse_infer, raw, header, plane.limits))
    default = body.parameters.binary_data_output
    asked = {one.name: one.parameters.binary_data for one in body.outputs}
    is_binary = {name: default if own is None else own for name, own in asked.items()}
    call.answer_encoding = "bytes" if all((is_binary or {"": default}).values()) else "list"
    message = inference.InferRequest(
        model=model,
        version=version,
        inputs=inputs,
        outputs=[one.name for one in body.outputs],
        parameters=body.parameters,
    )
    answer = await inference.infer(plane, message, call)
    is_binary = {name: is_binary.get(name, default) for name in answer.outputs}
    write = partial(write_infer, answer, body.id, is_binary)
    return await write_content(plane, write, sum(one.size for one in answer.outputs.values()))


def check_media(request: Request) -> None:
    """Check that the media type of a body is JSON, octets, or not given.

    A page of another origin may send a form or plain text without asking this server first.
    Triton's clients declare octets for JSON (asyncio), or nothing at all.

    Raises:
        UnsupportedMedia: It is another one.
    """
    if media_type(request) not in {"", JSON, OCTETS}:
        raise unsupported(request, f"{JSON}. With curl: -H 'Content-Type: {JSON}'")


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
    for index, tensor in enumerate(body.inputs):
        head = TensorHead(tensor.name, tensor.datatype, tensor.shape, f"inputs[{index}]")
        size = tensor.parameters.binary_data_size
        if (size is None) == (tensor.data is None) or (size or 0) > len(rest):
            raise InvalidRequest(
                f"{head.param}: give either data, or binary_data_size with so many bytes after the "
                f"JSON and the header {HEADER_LENGTH}; {len(rest)} bytes are left.",
                code="wrong_size" if tensor.data is None and size else None,
                param=f"{head.param}.data",
            )
        content = _json_elements(head, tensor.data or []) if size is None else rest[:size]
        tensors.append(read_tensor(head, limits, content))
        rest = rest[size or 0 :]
    if rest:
        raise InvalidRequest(
            f"{len(rest)} bytes after the JSON belong to no input; give each binary input the "
            "parameter binary_data_size.",
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


def _json_elements(head: TensorHead, data: list[Any]) -> list[Any]:
    """The elements of `data`: numbers as they are, strings as bytes."""
    if head.name not in INPUTS or INPUTS[head.name].datatype != "BYTES":
        return data
    items: list[bytes] = []
    for index, item in enumerate(data):
        param = f"{head.param}.data[{index}]"
        if not isinstance(item, str):
            raise InvalidRequest(f"{param} must be a string.", param=param)
        is_image = head.name == IMAGE.name
        items.append(
            decode_base64(item, param) if is_image else item.encode(errors="surrogatepass")
        )
    return items


def write_infer(
    answer: inference.InferAnswer, request_id: str | None, is_binary: Mapping[str, bool]
) -> Response:
    """Write the response. CPU work: one copy of the binary outputs.

    Args:
        answer: The outputs.
        request_id: The client's id for the request, if any.
        is_binary: Whether each output is sent as bytes after the JSON.
    """
    outputs: list[dict[str, Any]] = []
    blobs: list[memoryview] = []
    for name, array in answer.outputs.items():
        head = {"name": name, "datatype": "FP32", "shape": array.shape}
        little = little_endian(array)
        if is_binary[name]:
            outputs.append(head | {"parameters": {"binary_data_size": little.nbytes}})
            blobs.append(little.data.cast("B"))
        else:
            outputs.append(head | {"data": little.reshape(-1)})
    document: dict[str, Any] = {"model_name": answer.model, "model_version": metadata.VERSION}
    if request_id is not None:
        document["id"] = request_id
    content = dump(document | {"outputs": outputs})
    if not blobs:
        return Response(content, media_type=JSON)
    headers = {HEADER_LENGTH: str(len(content))}
    return Response(b"".join([content, *blobs]), media_type=OCTETS, headers=headers)


def build_repository_router(plane: DataPlane, repository: ModelRepository | None) -> APIRouter:
    """Index, load and unload; each is refused without a repository."""
    router = APIRouter(prefix="/v2/repository", tags=["repository"])

    def described(schema: type[BaseModel]) -> dict[str, Any]:
        disabled = V2_ERRORS[500] | {"description": "`enable_management` is off."}
        body = {"requestBody": {"required": False, "content": json_content(schema)}}
        return {"responses": V2_ERRORS | {501: disabled}, "openapi_extra": body}

    async def read(request: Request, schema: type[SchemaT]) -> SchemaT:
        check_media(request)
        raw = await read_body(request) or b"{}"
        return await plane.offload(partial(parse_json, raw, schema, plane.limits))

    @router.post("/index", **described(IndexBody))
    async def list_repository(request: Request) -> list[metadata.Document]:
        """All models that are or were served, or have a folder in the model repository."""
        managed = managed_repository(repository)
        body = await read(request, IndexBody)
        states = await plane.offload(managed.index)
        return metadata.repository_index(states, only_ready=body.ready)

    @router.post("/models/{name}/load", response_class=Response, **described(LoadBody))
    async def load_model(request: Request, name: str) -> Response:
        """Serve a package under this name; responds when the model is ready.

        A model that already has the name finishes its requests and is replaced. If the load
        fails, it stays.
        """
        managed = managed_repository(repository)
        plane.admission.check_open()
        body = await read(request, LoadBody)
        await managed.load(name, body.parameters.package)
        return Response()

    @router.post("/models/{name}/unload", response_class=Response, **described(UnloadBody))
    async def unload_model(request: Request, name: str) -> Response:
        """Stop serving this model; its current requests are still answered."""
        managed = managed_repository(repository)
        plane.admission.check_open()
        await read(request, UnloadBody)
        await managed.unload(name)
        return Response()

    return router
