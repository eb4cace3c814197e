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

    def __init__(self, app: AsgiApp, *routers: APIRouter) -> None:
        self._app = app
        found = {path: route for router in routers for path, route in direct_routes(router).items()}
        self._routes = {path: route for path, route in found.items() if "{" not in path}
        self._patterns = [route for path, route in found.items() if "{" in path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        route, names = self._find(scope["path"]) if is_post else (None, {})
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        response = await _answer(route, Request(scope, receive), names)
        await response(scope, receive, send)

    def _find(self, path: str) -> tuple[APIRoute | None, dict[str, str]]:
        """The route of a path, and what the path says in its braces."""
        if path in self._routes:
            return self._routes[path], {}
        for route in self._patterns:
            match = route.path_regex.match(path)
            if match:
                return route, match.groupdict()
        return None, {}


def direct_routes(router: APIRouter) -> dict[str, APIRoute]:
    """By path, the routes that take the request as it is and write their own response."""
    return {
        route.path: route
        for route in router.routes
        if isinstance(route, APIRoute) and route.methods == {"POST"} and _reads_itself(route)
    }


def _reads_itself(route: APIRoute) -> bool:
    """Whether nothing of the route is left for the framework to read, check or write."""
    in_path = dict.fromkeys(route.param_convertors, str)
    own = get_type_hints(route.endpoint) == {"request": Request, "return": Response, **in_path}
    return own and not route.dependant.dependencies


async def _answer(route: APIRoute, request: Request, names: dict[str, str]) -> Response:
    """The route's answer, or its error as the application's own handlers would write it."""
    try:
        response: Response = await route.endpoint(request, **names)
    except ClientLeft as error:
        response = await on_client_left(request, error)
    except ServiceError as error:
        response = await on_service_error(request, error)
    except Exception as error:
        response = await on_unexpected(request, error)
    return response
