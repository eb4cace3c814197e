"""ASGI around the routes: calls, deadlines, bodies within limits, clients that leave."""

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fastapi import Request

from service.call import Call, accept_priority, current_call, deadline_exceeded
from service.errors import InvalidRequest, RequestTooLarge, ServiceError, TooSlow, UnsupportedMedia
from service.monitoring.telemetry import CARRIED, Telemetry
from service.rest.direct import AsgiApp, Message, Receive, Scope, Send
from service.rest.errors import CLIENT_LEFT, ClientLeft, error_response
from service.safety.api_keys import ApiKeys
from service.safety.protection import BodyMemory, BodyShare
from service.safety.url_fetch import UrlFetcher

# Reads a request's body in bounds: of bytes, of the memory for all bodies, and of time.

MAX_LENGTH_DIGITS: Final = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """What one body may take.

    Attributes:
        max_bytes: Of one body.
        memory: For the bodies of all requests.
        timeout_s: How far a body may fall behind `bytes_per_s`, from its head on.
        bytes_per_s: How fast it must come on the whole.
        url_fetcher: None fetches no URL.
    """

    max_bytes: int
    memory: BodyMemory
    timeout_s: float
    bytes_per_s: int
    url_fetcher: UrlFetcher | None = None


# Where a request's scope holds its body, for those who fetch more to it.
SCOPE_KEY: Final = "tipserve.body"


class Body:
    """An ASGI `receive` that keeps to the limits."""

    def __init__(self, receive: Receive, limits: BodyLimits, share: BodyShare) -> None:
        self._receive = receive
        self._limits = limits
        self._share = share
        self._num_bytes = 0
        self._is_complete = False
        self._began = asyncio.get_running_loop().time()

    def check_head(self, headers: Mapping[bytes, str]) -> None:
        """Refuse what the head gives away, and take the memory that it asks for.

        Nothing has been received then, so a caller who waits for `100 Continue` sends nothing.

        Raises:
            RequestTooLarge: The announced length is over the limit.
            Overloaded: There is no memory for it now.
            UnsupportedMedia: The body is compressed.
        """
        encoding = headers.get(b"content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise UnsupportedMedia(
                "Bodies are read as they are: send this one without Content-Encoding.",
                param="Content-Encoding",
            )
        text = headers.get(b"content-length", "0")
        is_number = text.isascii() and text.isdigit()
        # What is no number was refused by the HTTP parser already.
        length = int(text[:MAX_LENGTH_DIGITS]) if is_number else 0
        if length > self._limits.max_bytes:
            raise self._too_large()
        self._share.hold(length)
        if b"transfer-encoding" in headers:
            self._limits.memory.check()

    async def __call__(self) -> Message:
        """The next message; after the body, waits for the caller to leave.

        Raises:
            ClientLeft: The caller closed the connection.
            RequestTooLarge: More came than the limit, whatever the head said.
            Overloaded: There is no memory for what came.
            TooSlow: Too little came in too long a time.
        """
        message = await (self._receive() if self._is_complete else self._receive_in_time())
        if message["type"] == "http.disconnect":
            raise ClientLeft
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._limits.max_bytes:
            raise self._too_large()
        self._share.hold(self._num_bytes)
        self._is_complete = not message.get("more_body", False)
        return message

    async def fetch(self, url: str, *, param: str) -> bytes:
        """An image that the body names by URL; it counts towards the memory for bodies.

        Raises:
            InvalidRequest: No URL is fetched here, or not this one, or no image came of it.
            Overloaded: There is no memory for it.
        """
        if self._limits.url_fetcher is None:
            raise InvalidRequest(
                f"{param} is a URL, and this server fetches none: send the image itself as "
                "base64, or have the server's setting url_hosts name the hosts to fetch from.",
                code="urls_not_enabled",
                param=param,
            )
        return await self._limits.url_fetcher.fetch(url, self._hold_more, param=param)

    def _hold_more(self, num_bytes: int) -> None:
        self._share.hold(self._share.num_bytes + num_bytes)

    async def _receive_in_time(self) -> Message:
        limits = self._limits
        due = self._began + limits.timeout_s + self._num_bytes / limits.bytes_per_s
        try:
            async with asyncio.timeout_at(due):
                return await self._receive()
        except TimeoutError:
            raise TooSlow(
                f"The body came slower than {limits.bytes_per_s} bytes a second for "
                f"{limits.timeout_s:g} seconds."
            ) from None

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(f"The body is larger than {self._limits.max_bytes} bytes.")


# The connection under a request: its call, its limits, and what happens when the caller leaves.

T = TypeVar("T")
CARRIED_HEADERS = {name.encode("ascii"): name for name in CARRIED}
METHOD_NOT_ALLOWED = 405
INTERNAL_SERVER_ERROR = 500
MAX_DIGITS = 12
QUIET_ROUTES = "/v2/health/"
# Need no key. The kubelet's probes cannot send one, and the documents say what stands in this
# repository, the same for every server.
OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"})
NO_PATHS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Who may call, and what one call may take.

    Attributes:
        keys: Of which one is needed on every path that is not open.
        timeout_s: Deadline of a call that brings none, and the longest that one may bring.
        body: Of one body.
        probes: Further paths of health checks, which need no key either.
    """

    keys: ApiKeys
    timeout_s: float
    body: BodyLimits
    probes: frozenset[str] = NO_PATHS


class CallMiddleware:
    """Outermost: gives every request its call, counts and logs it, and bounds its body."""

    def __init__(self, app: AsgiApp, telemetry: Telemetry, limits: CallLimits) -> None:
        self._app = app
        self._telemetry = telemetry
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        carried = {name: headers[key] for key, name in CARRIED_HEADERS.items() if key in headers}
        call = self._telemetry.begin(
            "https" if scope.get("scheme") == "https" else "http",
            scope["method"],
            carried,
            self._limits.timeout_s,
        )
        status = 0

        async def send_with_call(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_call_headers(call)]
            await send(message)

        try:
            with self._limits.body.memory.share() as share:
                try:
                    self._check_key(scope["path"], headers)
                    self._apply_limits(call, headers)
                    body = Body(receive, self._limits.body, share)
                    body.check_head(headers)
                    scope[SCOPE_KEY] = body
                    await self._app(scope, body, send_with_call)
                except ServiceError as error:
                    await error_response(error, scope["path"])(scope, receive, send_with_call)
        except Exception:
            # Answered and logged by the app's own handler, which raises it again for servers.
            if not status:
                raise
        finally:
            scope.pop(
                SCOPE_KEY, None
            )  # it holds the server's side of the request, and that the scope
            self._record(scope, status or CLIENT_LEFT, call)

    def _check_key(self, path: str, headers: dict[bytes, str]) -> None:
        if path not in OPEN_PATHS and path not in self._limits.probes:
            self._limits.keys.check(headers.get(b"authorization"), headers.get(b"x-api-key"))

    def _apply_limits(self, call: Call, headers: dict[bytes, str]) -> None:
        timeout_ms = headers.get(b"x-request-timeout-ms")
        if timeout_ms is not None:
            is_number = timeout_ms.isascii() and timeout_ms.isdigit()
            if not is_number or len(timeout_ms) > MAX_DIGITS or int(timeout_ms) == 0:
                raise InvalidRequest(
                    "X-Request-Timeout-Ms is a whole number of milliseconds, at least 1.",
                    param="X-Request-Timeout-Ms",
                )
            call.deadline = call.started + min(self._limits.timeout_s, int(timeout_ms) / 1000)
        priority = headers.get(b"x-request-priority")
        call.priority = accept_priority(priority, param="X-Request-Priority")

    def _record(self, scope: Scope, status: int, call: Call) -> None:
        route = getattr(scope.get("route"), "path", "other")
        # Neither a made-up path nor a made-up method becomes a label.
        is_known = route != "other" and status != METHOD_NOT_ALLOWED
        method = f"{scope['method']} {route}" if is_known else "other"
        self._telemetry.end(
            call,
            method,
            status,
            is_fault=status >= INTERNAL_SERVER_ERROR,
            is_quiet=route.startswith(QUIET_ROUTES) or route in self._limits.probes,
        )


async def until_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and cancel it as soon as the caller closes the connection.

    Call it after the body was read.

    Raises:
        ClientLeft: The caller closed the connection first.
    """
    worker = asyncio.current_task()
    assert worker is not None
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        with suppress(ClientLeft):
            while True:
                await request.receive()
        has_left = True
        worker.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if not has_left:
            raise
        worker.uncancel()
        raise ClientLeft from None
    finally:
        watcher.cancel()


async def in_time(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """As `until_left`, and no longer than the call's deadline.

    Raises:
        ClientLeft: The caller closed the connection first.
        DeadlineExceeded: The deadline passed first.
    """
    try:
        async with asyncio.timeout(current_call.get().remaining_s()):
            return await until_left(request, work)
    except TimeoutError:
        raise deadline_exceeded() from None


def _call_headers(call: Call) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-request-id", call.request_id.encode("ascii")),
        (b"server-timing", call.server_timing().encode("ascii")),
    ]
