"""Routes of the Open Inference Protocol: read, ask the core, write.

Each route of a model is there twice, with and without the model's version.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ValidationError

from service.call import current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest
from service.open_inference.inference import infer
from service.open_inference.metadata import (
    ModelMetadata,
    find_model,
    model_metadata,
    server_metadata,
)
from service.open_inference.statistics import statistics
from service.rest.connection import in_time, until_left
from service.rest.errors import invalid_fields
from service.rest.negotiation import JSON
from service.rest.open_inference.infer_answer import write_infer
from service.rest.open_inference.infer_body import (
    HEADER_LENGTH,
    binary_outputs,
    parse_infer,
    to_request,
)
from service.rest.open_inference.openapi import INFER
from service.rest.open_inference.schemas import (
    ConfigInput,
    ConfigTensor,
    ModelConfigBody,
    ModelMetadataBody,
    ModelReadyBody,
    ServerMetadataBody,
    StatisticsBody,
)
from service.rest.openapi import V2_ERRORS

BINARY = "application/octet-stream"
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
        written.content, media_type=BINARY, headers={HEADER_LENGTH: str(written.num_json)}
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
