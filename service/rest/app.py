"""The REST application: all routes, their errors, the OpenAPI document, and the middleware."""

import asyncio
import time
from collections.abc import Set
from functools import cache
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.call import Clock, current_call
from service.data_plane import DataPlane
from service.errors import ServiceError
from service.models.registry import ModelRepository
from service.monitoring.metrics import release
from service.monitoring.telemetry import Telemetry
from service.rest.cloud import CloudRoutes, build_cloud_router
from service.rest.connection import BODY, OPEN_PATHS, Body, CallMiddleware
from service.rest.errors import ClientLeft, on_error
from service.rest.hugging_face import TaskBody, build_hugging_face_router
from service.rest.open_inference import (
    IndexBody,
    InferAnswerBody,
    InferBody,
    ManageBody,
    build_inference_router,
    build_repository_router,
)
from service.rest.openai import EmbeddingsAnswer, EmbeddingsBody, build_openai_router
from service.rest.openapi import add_schemas, add_security
from service.rest.pages import add_pages
from service.rest.routes import build_router
from service.rest.token_ids import TokenVocabulary
from service.safety.protection import Protection
from service.turns import FlowTurns

NO_CLOUD = CloudRoutes()
# Requests begun in one turn of the event loop: the least after a turn of more than `SLOW_TURN_S`,
# then twice as many in each turn. Every turn reads sockets, and for each of them the loop gives up
# Python's lock. A thread that waits for it, to work for the first request begun, is woken each time
# and mostly too late: with 8 a small request took 28 us of CPU more than with 32.
MIN_BEGUN_PER_TURN: Final = 8
MAX_BEGUN_PER_TURN: Final = 32
SLOW_TURN_S: Final = 0.02
DESCRIPTION = "Embeddings of images, patches and texts, and masks of named classes."


def build_app(
    plane: DataPlane,
    telemetry: Telemetry,
    protection: Protection,
    repository: ModelRepository | None = None,
    *,
    cloud: CloudRoutes = NO_CLOUD,
    vocabulary: TokenVocabulary | None = None,
) -> CallMiddleware:
    """The ASGI application.

    Args:
        plane: Answers the requests.
        telemetry: Records them.
        protection: API keys and limits.
        repository: Loads and unloads models; None refuses that.
        cloud: Paths that a cloud platform chose.
        vocabulary: Decodes token ids; None refuses them.

    Raises:
        ValueError: A path of `cloud` is another route's.
    """
    native = build_router(plane)
    openai = build_openai_router(plane, vocabulary)
    hugging_face = build_hugging_face_router(plane)
    inference = build_inference_router(plane, is_managed=repository is not None)
    managing = build_repository_router(plane, repository)
    routers = [native, openai, hugging_face, inference, managing]
    clouds = build_cloud_router(plane, vocabulary, cloud, routers)
    app = build_framework_app(*routers, clouds)
    describe(app, OPEN_PATHS | cloud.probes, needs_key=protection.keys.is_required)
    telemetry.metrics.calls.declare(
        f"{verb} {route.path}"
        for router in (*routers, clouds)
        for route in router.routes
        if isinstance(route, APIRoute) and route.path not in OPEN_PATHS | cloud.probes
        for verb in sorted(route.methods or ())
    )
    dispatcher = Dispatcher(app, *post_routes(native, openai, hugging_face, inference, clouds))
    return CallMiddleware(dispatcher, telemetry, protection, cloud.probes)


def post_routes(*routers: APIRouter) -> list[APIRoute]:
    """The POST routes of routers."""
    routes = [route for router in routers for route in router.routes]
    return [r for r in routes if isinstance(r, APIRoute) and r.methods == {"POST"}]


class LoopTurns:
    """Begins a few requests in one turn of the event loop; hosts take turns.

    Between two turns the loop accepts, reads and closes connections. Without this, a crowd whose
    requests arrive at once is begun in one turn: 1,000 requests with large images took 30 s, while
    threads held Python's lock, and no health check was answered. Belongs to one event loop.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._began = 0.0
        self._num_begun = 0
        self._max_begun = MAX_BEGUN_PER_TURN
        self._waiting: FlowTurns[asyncio.Future[None]] = FlowTurns()

    async def wait(self, flow: str) -> None:
        """Return when a request of this flow may begin."""
        if not self._num_begun:
            self._began = self._clock()
            asyncio.get_running_loop().call_soon(self._begin_turn)
        if self._num_begun < self._max_begun:
            self._num_begun += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.add(flow, turn)
        await turn

    def _begin_turn(self) -> None:
        now = self._clock()
        is_slow = now - self._began > SLOW_TURN_S
        self._max_begun = (
            MIN_BEGUN_PER_TURN if is_slow else min(2 * self._max_begun, MAX_BEGUN_PER_TURN)
        )
        self._began = now
        self._num_begun = 0
        while self._waiting and self._num_begun < self._max_begun:
            _, turn = self._waiting.pop()
            if not turn.done():  # else its task was cancelled
                turn.set_result(None)
                self._num_begun += 1
        if self._num_begun:
            asyncio.get_running_loop().call_soon(self._begin_turn)


class Dispatcher:
    """Calls routes that read their own body, and cancels them when the client leaves.

    Such a route is `async def route(request: Request, **path_parameters: str) -> Response`. FastAPI
    serves all other requests. It could call these routes too, but its layers (exception handlers,
    exit stacks, dependencies, response models) do nothing for them and take about 110 us of CPU
    time, where all of this package takes 190 us for one image.
    """

    def __init__(self, app: ASGIApp, *routes: APIRoute) -> None:
        self._app = app
        self._routes = {route.path: route for route in routes if not route.param_convertors}
        self._patterns = [route for route in routes if route.param_convertors]
        self._turns = LoopTurns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        method = scope["method"] if scope["type"] == "http" else ""
        if method == "HEAD":
            await self._answer_head(scope, receive, send)
            return
        route, parameters = self._find(scope["path"]) if method == "POST" else (None, {})
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive)
        body: Body = scope[BODY]
        call = current_call.get()
        await self._turns.wait(call.flow)
        if call.has_left():
            # To begin 128 of them and to cancel them delayed the next request by 0.3 s.
            await body.drop()
        try:
            with body:
                response = await route.endpoint(request, **parameters)
        except ClientLeft:
            raise  # no answer is sent
        except Exception as error:
            response = await on_error(request, error)
        await response(scope, receive, send)

    async def _answer_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as for GET; uvicorn sends no body. FastAPI's routes know GET only."""
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, send)
        finally:
            scope["route"] = inner.get("route")

    def _find(self, path: str) -> tuple[APIRoute | None, dict[str, str]]:
        """The route of a path, and its path parameters."""
        if path in self._routes:
            return self._routes[path], {}
        for route in self._patterns:
            match = route.path_regex.match(path)
            if match:
                return route, match.groupdict()
        return None, {}


def build_framework_app(*routers: APIRouter) -> FastAPI:
    """FastAPI with all routes and the documents, without API keys and limits."""
    app = FastAPI(
        title="tipserve",
        version=release(),
        description=DESCRIPTION,
        # Relative to the document, also behind a proxy that serves it below a path.
        servers=[{"url": "."}],
        # The names of methods in generated clients.
        generate_unique_id_function=lambda route: route.name,
        docs_url=None,
        redoc_url=None,
        # `CallMiddleware` removes a trailing slash. A redirect would go to `http://` and the
        # client's `Host` header: behind a proxy that ends TLS, the client would then send its key
        # and images in plain text.
        redirect_slashes=False,
    )
    for router in routers:
        app.include_router(router)
    for error in (ServiceError, ClientLeft, 404, 405, Exception):
        app.add_exception_handler(error, on_error)
    add_pages(app)
    return app


def describe(app: FastAPI, open_paths: Set[str], *, needs_key: bool) -> None:
    """Complete the OpenAPI document of an application when it is first requested.

    Args:
        app: The application.
        open_paths: Routes that need no API key.
        needs_key: Whether all others need one.
    """
    generate = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        document = generate()
        add_schemas(
            document,
            bodies=(
                *(EmbeddingsBody, TaskBody, InferBody),
                *(IndexBody, ManageBody),
            ),
            answers=(EmbeddingsAnswer, InferAnswerBody),
        )
        add_security(document, open_paths, needs_key=needs_key)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this way to extend it
