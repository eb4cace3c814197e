"""What the connectors share: an ASGI app, its errors, and images by URL. It knows no protocol."""

import base64
import binascii
import hmac
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx2
import orjson
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tipserve_client import Client, TipserveError, errors

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
MAX_IMAGE_BYTES: Final = 64 * 1024 * 1024
MAX_REDIRECTS: Final = 3
FETCH_LIMIT_S: Final = 30.0
# Label Studio waits for 100 s.
ANSWER_LIMIT_S: Final = 90.0
# A wrong key of the connector or an unknown model is no error of the tool: 502.
STATUS: Final[Mapping[type[TipserveError], int]] = {
    errors.InvalidRequest: 400,
    errors.RequestTooLarge: 413,
    errors.NotSupported: 501,
    errors.Overloaded: 503,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
}
# Fields by name; those of files are bytes.
Form = Mapping[str, str | bytes]
Body = TypeVar("Body", bound=BaseModel)
logger = logging.getLogger(__name__)


class AnyBody(BaseModel):
    """A JSON object of which nothing is read."""


class Refused(Exception):
    """The tool's request cannot be answered; the message says what to change."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class ImageFetcher:
    """Reads the images of requests: base64, and URLs of the tool and of allowed hosts.

    A host is its name as in the URL, with the port if the URL has one. Thread-safe.

    Args:
        hosts: Allowed besides the tool's; they get no credentials.
        home: The tool's URL, to which relative URLs belong.
        authorize: Headers for requests to `home`.
        transport: For tests.
    """

    def __init__(
        self,
        hosts: Iterable[str] = (),
        *,
        home: str = "",
        authorize: Callable[[httpx2.Client], Mapping[str, str]] | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._hosts, self._home = {host.lower() for host in hosts}, home
        self._authorize = authorize
        self._http = httpx2.Client(timeout=FETCH_LIMIT_S, trust_env=False, transport=transport)

    def read_base64(self, text: str) -> bytes:
        """The bytes of base64, also of a `data:` URL."""
        try:
            return base64.b64decode(text.rpartition(",")[2], validate=True)
        except binascii.Error as error:
            raise Refused(f"The image is no base64: {error}.") from error

    def fetch(self, url: str) -> bytes:
        """The bytes of an image by its URL.

        Raises:
            Refused: The host is not allowed, or the image cannot be fetched.
        """
        if url.startswith("data:"):
            return self.read_base64(url)
        url, deadline = urljoin(self._home, url), time.monotonic() + FETCH_LIMIT_S
        try:
            for _ in range(MAX_REDIRECTS + 1):
                content, following = self._get(url, deadline)
                if following is None:
                    return content
                url = urljoin(url, following)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Refused(f"{_shown(url)} cannot be fetched: {error}.", 502) from error
        raise Refused(f"{_shown(url)} is redirected more than {MAX_REDIRECTS} times.", 502)

    def _get(self, url: str, deadline: float) -> tuple[bytes, str | None]:
        is_home = bool(self._home) and urlsplit(url)[:2] == urlsplit(self._home)[:2]
        host = urlsplit(url).netloc.lower()
        if not is_home and (not url.startswith(("http://", "https://")) or host not in self._hosts):
            raise Refused(f"Images of {host or 'no host'!r} are not allowed; see --allow-hosts.")
        headers = self._authorize(self._http) if is_home and self._authorize else {}
        with self._http.stream("GET", url, headers=headers) as answer:
            if answer.is_redirect:
                return b"", answer.headers["location"]
            if not answer.is_success:
                raise Refused(f"{_shown(url)} cannot be fetched: status {answer.status_code}.")
            content = bytearray()
            for part in answer.iter_bytes():
                content += part
                if len(content) > MAX_IMAGE_BYTES:
                    raise Refused(f"{_shown(url)} has more than {MAX_IMAGE_BYTES} bytes.", 413)
                if time.monotonic() > deadline:
                    raise Refused(f"{_shown(url)} took more than {FETCH_LIMIT_S:g} s.", 504)
            return bytes(content), None


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What a connector asks.

    Attributes:
        client: Of a server, or of a model in this process.
        model: Name of the served model; None is the default model.
        images: Reads images.
        upstream: URL of the tool's own service for what ours lacks; empty for none.
    """

    client: Client
    model: str | None = None
    images: ImageFetcher
    upstream: str = ""

    @property
    def asked(self) -> Any:
        """Options of every request."""
        return {"model": self.model, "timeout_s": ANSWER_LIMIT_S}

    def model_version(self) -> str:
        """Name and digest of the model, which change with its answers."""
        for one in self.client.models():
            if self.model in {None, one.name}:
                return f"{one.name}-{one.package_digest.removeprefix('sha256:')[:12]}"
        raise Refused(f"The server has no model {self.model!r}.", 502)


def get(path: str, answer: Callable[[], Any]) -> Route:
    """A route without a body."""

    async def endpoint(_: Request) -> Response:
        return to_json(await run_in_threadpool(answer))

    return Route(path, endpoint, methods=["GET"])


def post(path: str, kind: type[Body], answer: Callable[[Body], Any]) -> Route:
    """A route with JSON; `answer` runs in a thread."""

    async def endpoint(request: Request) -> Response:
        body = kind.model_validate_json(await request.body())
        return to_json(await run_in_threadpool(answer, body))

    return Route(path, endpoint, methods=["POST"])


def post_form(path: str, answer: Callable[[Form], Any]) -> Route:
    """A route with a form, whose files are bytes; `answer` runs in a thread."""

    async def endpoint(request: Request) -> Response:
        async with request.form(max_part_size=MAX_IMAGE_BYTES) as fields:
            form: Form = {
                name: field if isinstance(field, str) else await field.read()
                for name, field in fields.items()
            }
        return to_json(await run_in_threadpool(answer, form))

    return Route(path, endpoint, methods=["POST"])


def new_app(routes: Iterable[Route], *, key: str | None = None) -> Starlette:
    """The app of a connector.

    Args:
        routes: Of the tool's protocol.
        key: That the tool must send, in any of the ways of `Guard`; None asks for none.
    """
    handlers: Mapping[Any, Any] = dict.fromkeys(
        (Refused, TipserveError, ValidationError, Exception), _refuse
    )
    middleware = [Middleware(Guard, key=key)]
    return Starlette(routes=list(routes), middleware=middleware, exception_handlers=handlers)


class Guard:
    """Checks the key and bounds the body.

    Tools send a key as `Authorization: Bearer`, as the password of `Basic`, or as the parameter
    `api_key`. GET needs none, so that probes work.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and self._key and scope["method"] != "GET":
            given = _given_key(Request(scope))
            if not hmac.compare_digest(given.encode(), self._key.encode()):
                await _as_error(401, "The key is missing or wrong.")(scope, receive, send)
                return
        num_bytes = 0

        async def bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > MAX_BODY_BYTES:
                raise Refused(f"The body has more than {MAX_BODY_BYTES} bytes.", 413)
            return message

        await self._app(scope, bounded, send)


def _given_key(request: Request) -> str:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value).decode().partition(":")[2]
        except ValueError:
            return ""
    return request.query_params.get("api_key", "")


def _shown(url: str) -> str:
    """A URL without its query, which may be a signature."""
    return url.partition("?")[0]


def to_json(content: Any, status: int = 200) -> Response:
    """An answer; arrays of NumPy are lists."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, media_type="application/json")


def _as_error(status: int, message: str) -> Response:
    # Roboflow's client shows `message`, others `detail` or `error`.
    return to_json({"error": message, "message": message, "detail": message}, status)


def _refuse(request: Request, error: Exception) -> Response:
    # Some tools show no text of ours.
    logger.warning("%s: %s", request.url.path, error)
    if isinstance(error, Refused):
        return _as_error(error.status, str(error))
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return _as_error(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}.")
    if isinstance(error, TipserveError):
        status = next((n for kind, n in STATUS.items() if isinstance(error, kind)), 502)
        return _as_error(status, error.message)
    logger.error("internal error", exc_info=error)
    return _as_error(500, "Internal error; the log of the connector has more.")
