"""The REST application: all routes, their errors, the OpenAPI document, and the middleware."""

from collections.abc import Collection, Set
from functools import cache
from typing import Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp

from service.data_plane import DataPlane
from service.errors import ServiceError
from service.models.registry import ModelRepository
from service.monitoring.metrics import release
from service.monitoring.telemetry import Telemetry
from service.rest.cloud import CloudPaths, build_cloud_router
from service.rest.errors import ClientLeft, on_error
from service.rest.hugging_face import TaskBody, build_hugging_face_router
from service.rest.middleware import OPEN_PATHS, CallMiddleware
from service.rest.open_inference import (
    IndexBody,
    InferBody,
    ManageBody,
    build_inference_router,
    build_repository_router,
)
from service.rest.openai import EmbeddingsBody, build_openai_router
from service.rest.openapi import add_bodies, add_security
from service.rest.pages import add_pages
from service.rest.routes import NATIVE, build_native_router, build_state_router
from service.rest.token_ids import TokenVocabulary
from service.safety.protection import Protection

NO_CLOUD: Final = CloudPaths()
# Request bodies, which the routes read themselves.
BODIES: Final[tuple[type[BaseModel], ...]] = (
    *(native.body for native in NATIVE.values()),
    *(EmbeddingsBody, TaskBody, InferBody, IndexBody, ManageBody),
)
DESCRIPTION = "Embeddings of images, patches and texts, and masks of named classes."


def build_app(
    plane: DataPlane,
    telemetry: Telemetry,
    protection: Protection,
    repository: ModelRepository | None = None,
    *,
    paths: CloudPaths = NO_CLOUD,
    vocabulary: TokenVocabulary | None = None,
) -> ASGIApp:
    """The ASGI application.

    Args:
        plane: Answers the requests.
        telemetry: Records them.
        protection: API keys and limits.
        repository: Loads and unloads models; None refuses that.
        paths: Those that a cloud platform chose.
        vocabulary: Decodes token ids; None refuses them.

    Raises:
        ValueError: Such a path is another route's.
    """
    routers = [
        build_native_router(plane),
        build_state_router(plane, paths.health),
        build_openai_router(plane, vocabulary),
        build_hugging_face_router(plane),
        build_inference_router(plane, is_managed=repository is not None),
        build_repository_router(plane, repository),
        build_cloud_router(plane, vocabulary, paths.predict),
    ]
    routes = [route for router in routers for route in router.routes]
    app = build_framework_app(routes)
    for path in filter(None, paths):
        _check_unique(app, path)
    open_paths = OPEN_PATHS | {paths.health or "/health"}
    describe(app, open_paths, needs_key=protection.keys.is_required)
    telemetry.metrics.calls.declare(
        f"{verb} {route.path}"
        for route in routes
        if isinstance(route, APIRoute) and route.path not in open_paths
        for verb in sorted(route.methods or ())
    )
    app.state.url_fetcher = protection.url_fetcher
    middleware = CallMiddleware(
        app, telemetry, protection, plane.admission, health_route=paths.health
    )
    return readable_by_pages(middleware, protection.browsers.origins)


def _check_unique(app: FastAPI, path: str) -> None:
    scope = {"type": "http", "method": "GET", "path": path}
    if sum(route.matches(scope)[0] is not Match.NONE for route in app.routes) > 1:
        raise ValueError(
            f"health_route or predict_route: {path} is another route; choose another path"
        )


def readable_by_pages(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """Answer the preflights of web pages of these origins, and let them read the answers."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=sorted(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["Retry-After", "Server-Timing", "X-Request-Id"],
    )


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


def describe(app: FastAPI, open_paths: Set[str], *, needs_key: bool) -> None:
    """Serve the OpenAPI document, which is made once, when it is first requested.

    Nobody needs a key for it, so a request of it may cost no more than sending it.

    Args:
        app: The application.
        open_paths: Routes that need no API key.
        needs_key: Whether all others need one.
    """

    @cache
    def made() -> bytes:
        document = app.openapi()
        add_bodies(document, BODIES)
        add_security(document, open_paths, needs_key=needs_key)
        return bytes(JSONResponse(document).body)

    async def serve(_: Request) -> Response:
        return Response(made(), media_type="application/json")

    app.add_route("/openapi.json", serve, include_in_schema=False)
