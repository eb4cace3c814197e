"""A short way to the routes that read their own bodies and write their own answers.

The framework's dozen layers do nothing for these, and would cost more than all of our own work on a
request for a small model.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from service.errors import ServiceError
from service.rest.errors import ClientLeft, on_client_left, on_service_error, on_unexpected

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class DirectRoutes:
    """An ASGI application: those routes by path, and the framework's application for all else."""

    def __init__(self, app: AsgiApp, router: APIRouter) -> None:
        self._app = app
        self._routes = direct_routes(router)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        route = self._routes.get(scope["path"]) if is_post else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        response = await _answer(route, Request(scope, receive))
        await response(scope, receive, send)


def direct_routes(router: APIRouter) -> dict[str, APIRoute]:
    """By path, the routes that take the request as it is and write their own response."""
    return {
        route.path: route
        for route in router.routes
        if isinstance(route, APIRoute) and route.methods == {"POST"} and _reads_itself(route)
    }


def _reads_itself(route: APIRoute) -> bool:
    """Whether nothing of the route is left for the framework to read, check or write."""
    own = get_type_hints(route.endpoint) == {"request": Request, "return": Response}
    return own and not route.dependant.dependencies and "{" not in route.path


async def _answer(route: APIRoute, request: Request) -> Response:
    """The route's answer, or its error as the application's own handlers would write it."""
    try:
        response: Response = await route.endpoint(request)
    except ClientLeft as error:
        response = await on_client_left(request, error)
    except ServiceError as error:
        response = await on_service_error(request, error)
    except Exception as error:
        response = await on_unexpected(request, error)
    return response
