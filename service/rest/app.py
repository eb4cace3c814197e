"""The REST application: all routes, their errors, the OpenAPI document, and the middleware."""

from collections.abc import Iterable
from functools import cache
from typing import Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

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
    direct = [
        build_native_router(plane),
        build_openai_router(plane, vocabulary),
        build_hugging_face_router(plane),
        build_cloud_router(plane, vocabulary),
    ]
    others = [
        build_state_router(plane),
        build_inference_router(plane, is_managed=repository is not None),
        build_repository_router(plane, repository),
    ]
    routes = [route for router in [*direct, *others] for route in router.routes]
    app = build_framework_app(routes)
    describe(app, needs_key=protection.keys.is_required)
    telemetry.metrics.calls.declare(
        f"{verb} {route.path}"
        for route in routes
        if isinstance(route, APIRoute) and route.path not in OPEN_PATHS
        for verb in sorted(route.methods or ())
    )
    app.state.url_fetcher = protection.url_fetcher
    direct_app = DirectRoutes(app, [route for router in direct for route in router.routes])
    outermost: ASGIApp = CallMiddleware(direct_app, telemetry, protection, plane.admission)
    if origins := protection.browsers.origins:  # web pages that may read the answers
        outermost = CORSMiddleware(
            outermost,
            allow_origins=sorted(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-Id"],
        )
    return outermost


class DirectRoutes:
    """Calls the routes that take the request and return the response; FastAPI calls all others.

    FastAPI's layers do nothing for them, and take a sixth of the event loop's time for a small
    request.
    """

    def __init__(self, app: FastAPI, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes = {r.path: r for r in routes if isinstance(r, APIRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = self._routes.get(scope["path"])
        if route is None or scope["method"] not in (route.methods or ()):
            await self._app(scope, receive, send)
            return
        scope["app"], scope["route"] = self._app, route
        request = Request(scope, receive, send)
        try:
            response = await route.endpoint(request)
        except Exception as error:  # as FastAPI's handler
            response = await on_error(request, error)
        await response(scope, receive, send)


def build_framework_app(routes: list[BaseRoute]) -> FastAPI:
    """FastAPI with all routes and the documents, without API keys and limits."""
    app = FastAPI(
        # A generator of clients names a package by it: `tipserve_client` is ours.
        title="tipserve API",
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
