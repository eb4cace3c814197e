"""Routes that change what is served, as Triton's model repository extension has them.

They are there only where the settings say so.
"""

from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, ValidationError

from service.data_plane import DataPlane
from service.models.repository import ModelRepository
from service.open_inference.metadata import VERSION
from service.rest.errors import invalid_fields
from service.rest.openapi import V2_ERRORS, json_body
from service.rest.schemas import Schema

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
        plane.door.check()
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
        plane.door.check()
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
