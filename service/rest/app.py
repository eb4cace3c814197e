"""Puts the REST skin together: routes, errors, documentation, and the call around every request."""

from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse

from service.data_plane import DataPlane
from service.errors import ServiceError
from service.models.registry import ModelRepository
from service.monitoring.telemetry import Telemetry
from service.rest.cloud import CloudRoutes, PredictBody, build_cloud_router
from service.rest.connection import BodyLimits, CallLimits, CallMiddleware
from service.rest.direct import DirectRoutes, direct_routes
from service.rest.docs import docs_page
from service.rest.errors import (
    ClientLeft,
    on_client_left,
    on_http_exception,
    on_service_error,
    on_unexpected,
)
from service.rest.open_inference import (
    InferAnswerBody,
    InferBody,
    build_inference_router,
    build_repository_router,
)
from service.rest.openai import EmbeddingsAnswer, EmbeddingsBody, build_openai_router
from service.rest.openapi import add_schemas
from service.rest.routes import build_router
from service.safety.protection import Protection

NO_CLOUD = CloudRoutes()
DESCRIPTION = "Images and words in; embeddings of images, patches and texts, and masks out."


def build_app(
    plane: DataPlane,
    telemetry: Telemetry,
    protection: Protection,
    repository: ModelRepository | None = None,
    *,
    cloud: CloudRoutes = NO_CLOUD,
) -> CallMiddleware:
    """The ASGI application; without a repository it has no routes to change what is served.

    Raises:
        ValueError: A path of `cloud` is another route's.
    """
    body = BodyLimits(
        max_bytes=protection.max_body_bytes,
        memory=protection.body_memory,
        timeout_s=protection.client_timeout_s,
        bytes_per_s=protection.client_bytes_per_s,
        url_fetcher=protection.url_fetcher,
    )
    limits = CallLimits(
        keys=protection.keys,
        timeout_s=protection.request_timeout_s,
        body=body,
        probes=cloud.probes,
    )
    router = build_router(plane)
    inference = build_inference_router(plane, is_managed=repository is not None)
    managing = [] if repository is None else [build_repository_router(plane, repository)]
    openai = build_openai_router(plane)
    routers = [router, openai, inference, *managing]
    targets = direct_routes(router) | direct_routes(openai)
    clouds = build_cloud_router(plane, targets, cloud, routers)
    app = build_routes(*routers, clouds)
    routes = DirectRoutes(app, router, openai, clouds, inference)
    return CallMiddleware(routes, telemetry, limits)


def build_routes(*routers: APIRouter) -> FastAPI:
    """All routes, open to everybody: keys and limits are the middleware's."""
    app = FastAPI(
        title="tipserve",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        # A path with one slash too many would be sent on to `http://` and the Host that the caller
        # gave: in the clear where TLS ends before us, with its key and its images.
        redirect_slashes=False,
    )
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(ClientLeft, on_client_left)
    for status in (404, 405):
        app.add_exception_handler(status, on_http_exception)
    app.add_exception_handler(Exception, on_unexpected)
    generate = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        document = generate()
        add_schemas(
            document,
            bodies=(EmbeddingsBody, InferBody, PredictBody),
            answers=(EmbeddingsAnswer, InferAnswerBody),
        )
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the framework's own way to extend it

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(openapi()))

    return app
