"""ASGI middleware: creates each request's call; enforces API keys, deadlines and body limits."""

import asyncio
import zlib
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.call import Call, accept_priority, deadline_exceeded
from service.errors import (
    InvalidRequest,
    RequestTooLarge,
    ServiceError,
    TooSlow,
    UnsupportedMedia,
)
from service.monitoring.telemetry import CARRIED, Telemetry
from service.rest.errors import CLIENT_LEFT, STATUS, ClientLeft, error_response
from service.rest.pages import is_page
from service.safety.api_keys import do_nothing
from service.safety.protection import BodyShare, Protection
from service.safety.refusals import PACED_KINDS, RefusalPace
from service.tracing import Transport

# Key of an ASGI scope that holds the request's `Body`.
BODY: Final = "tipserve.body"
# Key of an ASGI scope that holds the request's `ClientLink`.
CLIENT: Final = "tipserve.client"
READS: Final = frozenset({"GET", "HEAD"})
CARRIED_HEADERS: Final = {name.encode("ascii"): name for name in CARRIED}
METHOD_NOT_ALLOWED: Final = 405
# Statuses of refusals that wait for their turn.
PACED: Final = frozenset(STATUS[kind] for kind in PACED_KINDS)
# Content-Encoding: the `wbits` of zlib.
WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}
# Bytes of a compressed body that are unpacked at once, which takes about 1 ms.
PIECE_BYTES: Final = 128 * 1024
INTERNAL_SERVER_ERROR: Final = 500
MAX_LENGTH_DIGITS: Final = 18
MAX_TIMEOUT_DIGITS: Final = 12
HEALTH_PATHS: Final = frozenset({"/v2/health/live", "/v2/health/ready", "/health", "/healthz"})
# These need no key and accept every host and origin: the kubelet's probes send no key and the pod's
# address, and the pages and the document are the same for every server and in this repository.
OPEN_PATHS: Final = HEALTH_PATHS | {"/openapi.json"}


class Unpacker:
    """Unpacks a compressed body in pieces, so that each is counted before the next one is made."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream = zlib.decompressobj(WINDOW_BITS[encoding])
        self.has_more = False

    def unpack(self, packed: bytes, *, is_last: bool) -> bytes:
        """The next piece; `has_more` says whether to call again, with no bytes.

        Raises:
            InvalidRequest: The bytes are malformed, or end before the compressed data do.
        """
        try:
            piece = self._stream.decompress(self._stream.unconsumed_tail + packed, PIECE_BYTES)
        except zlib.error:
            raise self._malformed() from None
        self.has_more = len(piece) == PIECE_BYTES
        is_cut = is_last and not self.has_more and not self._stream.eof
        if is_cut or self._stream.unused_data:
            raise self._malformed()
        return piece

    def _malformed(self) -> InvalidRequest:
        return InvalidRequest(
            f"The body is not one complete {self._encoding} stream, as its Content-Encoding says.",
            code="invalid_body",
            param="Content-Encoding",
        )


class ClientLink:
    """What the server knows of the client of one request, besides ASGI's messages.

    Attributes:
        has_left: Whether it has closed the connection; from any thread.
        has_message: Whether `receive` returns at once.
        on_left: Called when the connection is lost.
        send_refusal: While a refusal waits for its turn: sends it now. Else None.
    """

    __slots__ = ("has_left", "has_message", "on_left", "send_refusal")

    def __init__(
        self,
        has_left: Callable[[], bool] = lambda: False,
        has_message: Callable[[], bool] = lambda: False,
    ) -> None:
        self.has_left = has_left
        self.has_message = has_message
        self.on_left: Callable[[], None] = do_nothing
        self.send_refusal: Callable[[], None] | None = None


class Body:
    """An ASGI `receive` that limits a body's bytes, memory and time, and notices a lost client."""

    def __init__(
        self,
        receive: Receive,
        protection: Protection,
        share: BodyShare,
        limit_s: float,
        *,
        client: ClientLink | None = None,
    ) -> None:
        """Begin to receive; the whole body must arrive within `limit_s`."""
        now = asyncio.get_running_loop().time()
        self.client = client or ClientLink()
        self._receive = receive
        self._protection = protection
        self._share = share
        self._num_received = 0
        self._num_unpacked = 0
        self._is_complete = False
        self._unpacker: Unpacker | None = None
        self._last_due = now + limit_s
        # When the next bytes must have arrived. Every byte moves it by the minimum rate, but never
        # further than `client_timeout_s`: bytes sent fast buy no hours of silence.
        self._due = min(now + protection.client_timeout_s, self._last_due)
        self._handler: asyncio.Task[object] | None = None
        self._has_left = False

    def check_head(self, headers: Mapping[bytes, str]) -> None:
        """Check the headers that describe the body.

        Runs before anything is received, so a client that waits for `100 Continue` sends nothing.
        The announced length must fit the memory for bodies now, but takes none: memory is taken as
        bytes arrive, so that connections that only announce refuse no other.

        Raises:
            RequestTooLarge: The announced length is over the limit.
            Overloaded: There is no memory for it now.
            UnsupportedMedia: The body is compressed in another way than gzip or deflate.
        """
        encoding = headers.get(b"content-encoding", "identity").strip().lower()
        if encoding in WINDOW_BITS:
            self._unpacker = Unpacker(encoding)
        elif encoding != "identity":
            raise UnsupportedMedia(
                f"Content-Encoding {encoding} is not supported; send {' or '.join(WINDOW_BITS)}, "
                "or the body uncompressed.",
                param="Content-Encoding",
            )
        text = headers.get(b"content-length", "0")
        # The HTTP parser has already refused a length that is not a number.
        is_number = text.isascii() and text.isdigit()
        length = int(text[:MAX_LENGTH_DIGITS]) if is_number else 0
        if length > self._protection.max_body_bytes:
            raise self._too_large()
        self._protection.body_memory.check(length)
        if b"transfer-encoding" in headers:
            self._protection.body_memory.check(1)

    async def __call__(self) -> Message:
        """The next message of the body; after the last one, waits for the client to leave.

        Raises:
            ClientLeft: The client closed the connection.
            RequestTooLarge: The body is over the limit, whatever its headers announced.
            Overloaded: There is no memory for the bytes received.
            TooSlow: The body arrives below the minimum rate.
            DeadlineExceeded: The deadline passed before its end.
            InvalidRequest: A compressed body is malformed.
        """
        if self._unpacker is not None and self._unpacker.has_more:
            await asyncio.sleep(0)  # the event loop serves others between two pieces
            return self._unpacked(self._unpacker, b"")
        # Most bodies come with their heads: a timer for each cost more than to read it.
        is_waiting = not (self._is_complete or self.client.has_message())
        message = await (self._wait_for_message() if is_waiting else self._receive())
        if message["type"] == "http.disconnect":
            raise ClientLeft
        received = message.get("body", b"")
        self._num_received += len(received)
        if self._num_received > self._protection.max_body_bytes:
            raise self._too_large()
        self._is_complete = not message.get("more_body", False)
        if not self._is_complete:
            self._extend(len(received))
        if self._unpacker is not None:
            return self._unpacked(self._unpacker, received)
        self._share.hold(self._num_received)
        return message

    def _unpacked(self, unpacker: Unpacker, received: bytes) -> Message:
        piece = unpacker.unpack(received, is_last=self._is_complete)
        self._num_unpacked += len(piece)
        if self._num_unpacked > self._protection.max_body_bytes:
            raise self._too_large()
        self._share.hold(self._num_unpacked)
        more_body = unpacker.has_more or not self._is_complete
        return {"type": "http.request", "body": piece, "more_body": more_body}

    def __enter__(self) -> None:
        """Once the body is complete, cancel the block when the client closes the connection.

        The block raises `ClientLeft` then.
        """
        self._handler = asyncio.current_task()
        self.client.on_left = self._leave

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        # A task and its frames must not reference each other: they would outlive the request.
        handler, self._handler = self._handler, None
        self.client.on_left = do_nothing
        if self._has_left and handler is not None and kind is asyncio.CancelledError:
            handler.uncancel()
            raise ClientLeft from None

    async def drop(self) -> NoReturn:
        """Drop the body of a client that has left, until uvicorn has noticed it.

        If the application ended earlier, uvicorn would answer 500 and log an error.

        Raises:
            ClientLeft: Always.
        """
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise ClientLeft

    async def fetch(self, url: str, *, param: str) -> bytes:
        """Fetch an image that the body names by URL; it counts towards the memory for bodies.

        Raises:
            InvalidRequest: URLs are disabled, this URL is not allowed, or it has no image.
            Overloaded: There is no memory for it.
        """
        if self._protection.url_fetcher is None:
            raise InvalidRequest(
                f"{param} is a URL, but this server does not fetch URLs: send the image as "
                "base64, or list the allowed hosts in the server's setting url_hosts.",
                code="urls_not_enabled",
                param=param,
            )
        return await self._protection.url_fetcher.fetch(url, self._hold_more, param=param)

    def _hold_more(self, num_bytes: int) -> None:
        self._share.hold(self._share.num_bytes + num_bytes)

    def _extend(self, num_bytes: int) -> None:
        """Allow more time for the next bytes after these."""
        now = asyncio.get_running_loop().time()
        earned_s = num_bytes / self._protection.client_bytes_per_s
        limit_s = self._protection.client_timeout_s
        self._due = min(max(self._due, now) + earned_s, now + limit_s, self._last_due)

    async def _wait_for_message(self) -> Message:
        try:
            async with asyncio.timeout_at(self._due):
                return await self._receive()
        except TimeoutError:
            if self._due == self._last_due:
                raise deadline_exceeded() from None
            raise TooSlow(
                f"The body arrived at less than {self._protection.client_bytes_per_s} bytes a "
                f"second for {self._protection.client_timeout_s:g} seconds."
            ) from None

    def _leave(self) -> None:
        # Until the body is complete, the next message says it.
        if self._is_complete and self._handler is not None:
            self._has_left = True
            self._handler.cancel()

    def _too_large(self) -> RequestTooLarge:
        limit = self._protection.max_body_bytes
        return RequestTooLarge(f"The body is larger than {limit} bytes.")


class Answer:
    """Sends the answer to one request, and gives back what the request holds.

    Attributes:
        leave: Ends the request of its API key.
        status: 0 until the answer begins.
    """

    __slots__ = ("_call", "_client", "_refusals", "_send", "_share", "leave", "status")

    def __init__(
        self,
        send: Send,
        call: Call,
        share: BodyShare,
        *,
        client: ClientLink,
        refusals: RefusalPace,
    ) -> None:
        self._send, self._call, self._share = send, call, share
        self._client, self._refusals = client, refusals
        self.leave: Callable[[], None] = do_nothing
        self.status = 0

    async def send(self, message: Message) -> None:
        """Send an ASGI message; a refusal for want of a key or of room waits for its turn."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status in PACED:
                self.give_back()
                await self._wait_for_turn()
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self._call.request_id.encode("ascii")),
                (b"server-timing", self._call.server_timing().encode("ascii")),
            ]
        await self._send(message)

    async def _wait_for_turn(self) -> None:
        """Return in the refusal's turn, when the client leaves, or when it is to be sent now."""
        turn, client = asyncio.Event(), self._client
        client.on_left = client.send_refusal = turn.set
        try:
            await self._refusals.wait(self._call.flow, turn)
        finally:
            client.on_left, client.send_refusal = do_nothing, None

    def give_back(self) -> None:
        """Give back what the request holds; later calls have no effect."""
        self._share.give_back()
        self._call.free_memory()
        self.leave()
        self.leave = do_nothing


class CallMiddleware:
    """Outermost application: creates, counts and logs the call of each request."""

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        protection: Protection,
        probes: frozenset[str] = frozenset(),
    ) -> None:
        """Wrap an application.

        Args:
            app: Serves the requests.
            telemetry: Records them.
            protection: API keys, and the limits of a body and of a call.
            probes: Paths of further health checks, which need no key.
        """
        self._app = app
        self._telemetry = telemetry
        self._protection = protection
        self._probes = probes
        self._refusals = RefusalPace()
        self.health_paths = HEALTH_PATHS | probes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] != "/":
            scope["path"] = scope["path"].removesuffix("/")
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        call = self._begin(scope, headers)
        client = scope.get(CLIENT) or ClientLink()
        share = self._protection.body_memory.share()
        answer = Answer(send, call, share, client=client, refusals=self._refusals)
        try:
            try:
                answer.leave = self._enter_caller(scope, headers)
                self._apply_headers(call, headers)
                left_s = call.deadline - call.clock()
                body = Body(receive, self._protection, share, left_s, client=client)
                scope[BODY] = body
                body.check_head(headers)
                # A page has no body, and its answer may see the client leave: no error.
                is_read = scope["method"] in READS and is_page(scope["path"])
                await self._app(scope, receive if is_read else body, answer.send)
            except ServiceError as error:
                await error_response(error, scope["path"])(scope, receive, answer.send)
        except ClientLeft:
            call.error = "client_left"
        except Exception:
            # FastAPI's handler has answered and logged it, and raises it again for the server.
            if not answer.status:
                raise
        finally:
            # The body references uvicorn's side of the request, and that references the scope.
            scope.pop(BODY, None)
            answer.give_back()
            self._record(scope, answer.status or CLIENT_LEFT, call)

    def _begin(self, scope: Scope, headers: Mapping[bytes, str]) -> Call:
        transport: Transport = "https" if scope.get("scheme") == "https" else "http"
        carried = {}
        if not headers.keys().isdisjoint(CARRIED_HEADERS):
            carried = {n: headers[key] for key, n in CARRIED_HEADERS.items() if key in headers}
        call = self._telemetry.begin(
            transport,
            scope["method"],
            carried,
            self._protection.request_timeout_s,
            host=(scope.get("client") or ("",))[0],
        )
        if CLIENT in scope:
            call.has_left = scope[CLIENT].has_left
        return call

    def _enter_caller(self, scope: Scope, headers: Mapping[bytes, str]) -> Callable[[], None]:
        """Check who sends the request; call the result at its end."""
        path = scope["path"]
        if scope["method"] in READS and (
            path in OPEN_PATHS or path in self._probes or is_page(path)
        ):
            return do_nothing
        self._protection.browsers.check(headers)
        return self._protection.keys.enter(headers.get(b"authorization"), headers.get(b"x-api-key"))

    def _apply_headers(self, call: Call, headers: Mapping[bytes, str]) -> None:
        """Set the deadline and the priority that the headers ask for."""
        timeout_ms = headers.get(b"x-request-timeout-ms")
        if timeout_ms is not None:
            is_number = timeout_ms.isascii() and timeout_ms.isdigit()
            if not is_number or len(timeout_ms) > MAX_TIMEOUT_DIGITS or int(timeout_ms) == 0:
                raise InvalidRequest(
                    "X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1.",
                    param="X-Request-Timeout-Ms",
                )
            timeout_s = min(self._protection.request_timeout_s, int(timeout_ms) / 1000)
            call.deadline = call.started + timeout_s
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
            is_quiet=route in self.health_paths,
        )
