"""The one ASGI middleware: each request's call, key, limits, deadline, ticket and lost client."""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.admission import Admission, Ticket
from service.call import Call, accept_priority, deadline_exceeded
from service.errors import (
    InvalidRequest,
    RequestTooLarge,
    ServiceError,
    Unauthenticated,
    UnsupportedMedia,
)
from service.monitoring.telemetry import CARRIED, Telemetry
from service.rest.errors import CLIENT_LEFT, ClientLeft, error_response
from service.rest.pages import is_page
from service.safety.protection import Protection
from service.safety.proxies import FORWARDED_FOR
from service.tracing import Transport

# Before a wrong key is refused. 256 connections that ask again and again took most of the CPU, also
# through the proxy: docs/operations.md, "Attacks through the proxy".
WRONG_KEY_DELAY_S: Final = 0.5
CARRIED_HEADERS: Final = {name.encode("ascii"): name for name in CARRIED}
FORWARDED_HEADER: Final = FORWARDED_FOR.encode("ascii")
# The extension of ASGI's scope that calls a function once the client has left.
WATCH: Final = "tipserve.watch"
METHOD_NOT_ALLOWED: Final = 405
INTERNAL_SERVER_ERROR: Final = 500
MAX_LENGTH_DIGITS: Final = 18
TIMEOUT_MS: Final = re.compile("(?=0*[1-9])[0-9]{1,12}")
READY_PATH: Final = "/v2/health/ready"
READY_PATHS: Final = ("/health", "/healthz", "/ping")  # the last one is SageMaker's
HEALTH_PATHS: Final = frozenset({"/v2/health/live", READY_PATH, *READY_PATHS})
# These need no key and accept every host and origin: the kubelet's probes send no key and the pod's
# address, and the pages and the document are the same for every server and in this repository.
OPEN_PATHS: Final = HEALTH_PATHS | {"/openapi.json"}

Watch = Callable[[Callable[[], None] | None], None]


class Exchange:
    """ASGI's `receive` and `send` of one request, with its limits.

    Once the body is complete, a client that leaves cancels the task of the request.

    `watch` is the extension `WATCH`; `is_last` says whether the connection closes after it.

    Attributes:
        ticket: Of the request.
        status: Of the answer; 0 until it begins.
        has_left: Whether the client has closed the connection.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        ticket: Ticket,
        *,
        watch: Watch,
        max_body_bytes: int,
        is_last: bool,
    ) -> None:
        self._receive, self._send, self._watch = receive, send, watch
        self.ticket, self._call = ticket, ticket.call
        self._max_bytes = max_body_bytes
        self._num_bytes = 0
        self._task = asyncio.current_task()
        self._is_complete = False
        self._is_last = is_last
        self._is_sent = False
        self.has_left = False
        self.status = 0

    def check_head(self, headers: Mapping[bytes, str]) -> None:
        """Check the headers that describe the body, before any of it is received.

        Raises:
            RequestTooLarge: The announced length is over the limit.
            UnsupportedMedia: The body is compressed.
        """
        encoding = headers.get(b"content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise UnsupportedMedia(
                f"Content-Encoding {encoding} is not supported; send the body uncompressed.",
                param="Content-Encoding",
            )
        # The HTTP parser has already refused a length that is not a number.
        text = headers.get(b"content-length", "0")
        if len(text) > MAX_LENGTH_DIGITS or int(text) > self._max_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next message of the body.

        Raises:
            ClientLeft: The client closed the connection.
            RequestTooLarge: The body is over the limit, whatever its headers announced.
            Overloaded: There is no memory for the bytes received.
        """
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._max_bytes:
            raise self._too_large()
        self.ticket.hold_body(self._num_bytes)
        if not message.get("more_body", False) and not self._is_complete:
            self._is_complete = True
            self._watch(self._leave)
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the answer, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self._call.request_id.encode("ascii")),
                (b"server-timing", self._call.server_timing().encode("ascii")),
            ]
            if self._is_last:
                message["headers"].append((b"connection", b"close"))
        elif not message.get("more_body", False):
            self._is_sent = True  # the client may leave after it
        await self._send(message)

    def close(self) -> None:
        """The request has ended; nothing of it waits for the garbage collector."""
        self._watch(None)
        self._task = None

    def _leave(self) -> None:
        if not self._is_sent and not self.has_left and self._task is not None:
            self.has_left = True
            self._task.cancel()

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(f"The body is larger than {self._max_bytes} bytes.")


def _watch_nothing(on_lost: Callable[[], None] | None) -> None:
    """`WATCH` of a server that has none, such as in a test."""


class CallMiddleware:
    """Outermost application: creates, limits, counts and logs the call of each request.

    `app` serves the requests.
    """

    def __init__(
        self, app: ASGIApp, telemetry: Telemetry, protection: Protection, admission: Admission
    ) -> None:
        self._app = app
        self._telemetry = telemetry
        self._protection = protection
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["method"] == "HEAD":  # FastAPI's routes know GET only; uvicorn sends no body
            scope = {**scope, "method": "GET"}
        if scope["path"] != "/":
            scope["path"] = scope["path"].removesuffix("/")
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        call = self._begin(scope, headers)
        ticket = self._admission.enter(call)
        exchange = Exchange(
            receive,
            send,
            ticket,
            watch=scope.get("extensions", {}).get(WATCH, _watch_nothing),
            max_body_bytes=self._protection.settings.max_request_bytes,
            is_last=self._admission.is_stopping,
        )
        try:
            # A read has no body, and its answer may see the client leave: no error.
            is_read = scope["method"] == "GET"
            await self._serve(scope, headers, receive if is_read else exchange.receive, exchange)
        except ClientLeft:
            call.error = "client_left"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not exchange.has_left or task is None or task.uncancel():
                raise  # the server ends the request
            call.error = "client_left"
        except Exception:
            # FastAPI's handler has answered and logged it, and raises it again for the server.
            if not exchange.status:
                raise
        finally:
            exchange.close()
            ticket.release()
            self._record(scope, exchange.status or CLIENT_LEFT, call)

    async def _serve(
        self, scope: Scope, headers: Mapping[bytes, str], receive: Receive, exchange: Exchange
    ) -> None:
        """Check the head of a request, then answer until its deadline."""
        ticket, call = exchange.ticket, exchange.ticket.call
        error: ServiceError
        try:
            ticket.leave = self._enter_caller(scope, headers, call)
            self._apply_headers(call, headers)
            exchange.check_head(headers)
            async with asyncio.timeout(call.deadline - call.clock()) as call.limit:
                await self._app(scope, receive, exchange.send)
            return
        except TimeoutError:
            error = deadline_exceeded()
        except ServiceError as raised:
            error = raised
        if isinstance(error, Unauthenticated):
            await asyncio.sleep(WRONG_KEY_DELAY_S)
        if exchange.status:
            # uvicorn closes a connection whose answer is incomplete.
            call.error = error.code
            return
        await error_response(error, scope["path"])(scope, receive, exchange.send)

    def _begin(self, scope: Scope, headers: Mapping[bytes, str]) -> Call:
        transport: Transport = "https" if scope.get("scheme") == "https" else "http"
        carried = {n: headers[key] for key, n in CARRIED_HEADERS.items() if key in headers}
        peer = (scope.get("client") or ("",))[0]
        forwarded = (v.decode("latin-1") for n, v in scope["headers"] if n == FORWARDED_HEADER)
        return self._telemetry.begin(
            transport,
            scope["method"],
            carried,
            self._protection.settings.request_timeout_s,
            host=self._protection.proxies.host_of(peer, forwarded),
        )

    def _enter_caller(
        self, scope: Scope, headers: Mapping[bytes, str], call: Call
    ) -> Callable[[], None]:
        """Check who sends the request; call the result at its end."""
        path = scope["path"]
        if scope["method"] == "GET" and (path in OPEN_PATHS or is_page(path)):
            return lambda: None
        self._protection.browsers.check(headers)
        shown = headers.get(b"authorization"), headers.get(b"x-api-key")
        return self._protection.keys.enter(*shown, call)

    def _apply_headers(self, call: Call, headers: Mapping[bytes, str]) -> None:
        """Set the deadline and the priority that the headers ask for."""
        timeout_ms = headers.get(b"x-request-timeout-ms")
        if timeout_ms is not None:
            if not TIMEOUT_MS.fullmatch(timeout_ms):
                raise InvalidRequest(
                    "X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1.",
                    param="X-Request-Timeout-Ms",
                )
            call.shorten(call.started + int(timeout_ms) / 1000)
        priority = headers.get(b"x-request-priority")
        if priority is not None:
            call.priority = accept_priority(priority, param="X-Request-Priority")

    def _record(self, scope: Scope, status: int, call: Call) -> None:
        route = getattr(scope.get("route"), "path", "other")
        # A client must not be able to create labels by inventing paths or methods.
        is_known = route != "other" and status != METHOD_NOT_ALLOWED
        method = f"{scope['method']} {route}" if is_known else "other"
        self._telemetry.end(
            call,
            method,
            status,
            is_fault=status >= INTERNAL_SERVER_ERROR,
            is_quiet=route in HEALTH_PATHS,
        )
