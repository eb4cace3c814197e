"""The REST application: all routes, their errors, the OpenAPI document, and the middleware."""

from functools import cache
from typing import Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from service.data_plane import DataPlane
from service.errors import ServiceError
from service.models.registry import ModelRepository
from service.monitoring.metrics import release
from service.monitoring.telemetry import Telemetry
from service.rest.cloud import build_cloud_router
from service.rest.errors import ClientLeft, on_error
from service.rest.hugging_face import TaskBody, build_hugging_face_router
from service.rest.middleware import OPEN_PATHS, CallMiddleware
from service.rest.open_inference import (
    IndexBody,
    InferBody,
    LoadBody,
    UnloadBody,
    build_inference_router,
    build_repository_router,
)
from service.rest.openai import EmbeddingsBody, build_openai_router
from service.rest.openapi import add_bodies, add_security
from service.rest.pages import add_pages
from service.rest.routes import NATIVE, build_native_router, build_state_router
from service.rest.token_ids import TokenVocabulary
from service.safety.protection import Protection

# Request bodies, which the routes read themselves.
BODIES: Final[tuple[type[BaseModel], ...]] = (
    *(native.body for native in NATIVE.values()),
    *(EmbeddingsBody, TaskBody, InferBody, IndexBody, LoadBody, UnloadBody),
)
DESCRIPTION = "Embeddings of images, patches and texts, and masks of named classes."


def build_app(
    plane: DataPlane,
    telemetry: Telemetry,
    protection: Protection,
    repository: ModelRepository | None = None,
    *,
    vocabulary: TokenVocabulary | None = None,
) -> ASGIApp:
    """The ASGI application.

    Args:
        plane: Answers the requests.
        telemetry: Records them.
        protection: API keys and limits.
        repository: Loads and unloads models; None refuses that.
        vocabulary: Decodes token ids; None refuses them.
    """
    routers = [
        build_native_router(plane),
        build_state_router(plane),
        build_openai_router(plane, vocabulary),
        build_hugging_face_router(plane),
        build_inference_router(plane, is_managed=repository is not None),
        build_repository_router(plane, repository),
        build_cloud_router(plane, vocabulary),
    ]
    routes = [route for router in routers for route in router.routes]
    app = build_framework_app(routes)
    describe(app, needs_key=protection.keys.is_required)
    telemetry.metrics.calls.declare(
        f"{verb} {route.path}"
        for route in routes
        if isinstance(route, APIRoute) and route.path not in OPEN_PATHS
        for verb in sorted(route.methods or ())
    )
    app.state.url_fetcher = protection.url_fetcher
    outermost: ASGIApp = CallMiddleware(app, telemetry, protection, plane.admission)
    if origins := protection.browsers.origins:  # web pages that may read the answers
        outermost = CORSMiddleware(
            outermost,
            allow_origins=sorted(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-Id"],
        )
    return outermost


def build_framework_app(routes: list[BaseRoute]) -> FastAPI:
    """FastAPI with all routes and the documents, without API keys and limits."""
    app = FastAPI(
        title="tipserve",
        version=release(),
        description=DESCRIPTION,
        # Relative to the document, also behind a proxy that serves it below a path.
        servers=[{"url": "."}],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # see `describe`
        # `CallMiddleware` removes a trailing slash. A redirect would go to `http://` and the
        # client's `Host` header: behind a proxy that ends TLS, the client would then send its key
        # and images in plain text.
        redirect_slashes=False,
        # `include_router` would match every request twice.
        routes=routes,
    )
    for route in routes:
        if isinstance(route, APIRoute):
            route.operation_id = route.name  # of the method in generated clients
    for error in (ServiceError, ClientLeft, 404, 405, Exception):
        app.add_exception_handler(error, on_error)
    add_pages(app)
    return app


def describe(app: FastAPI, *, needs_key: bool) -> None:
    """Serve the OpenAPI document, which is made once, when it is first requested.

    No key is needed for it, so a request of it may cost no more than sending it. `needs_key` says
    whether the routes besides `OPEN_PATHS` need one.
    """

    @cache
    def made() -> bytes:
        document = app.openapi()
        add_bodies(document, BODIES)
        add_security(document, OPEN_PATHS, needs_key=needs_key)
        return bytes(JSONResponse(document).body)

    async def serve(_: Request) -> Response:
        return Response(made(), media_type="application/json")

    app.add_route("/openapi.json", serve, include_in_schema=False)
