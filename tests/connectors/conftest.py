"""A model that finds dogs, a tool's store of images, and callers of a connector's app."""

import base64
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx2
import pytest

from connectors.app import Backend, ImageFetcher, new_app
from tests.tipserve_cli.conftest import Fake, image  # noqa: F401 - a fixture
from tipserve_client import Client, Retry, Segmentation
from tipserve_client.errors import Unavailable
from tipserve_client.requests import Request

HOME = "http://tool:8080"
TOKEN = "0123456789abcdef"
# Calls a connector: path, body, headers.
Call = Callable[..., Awaitable[httpx2.Response]]


class Dogs(Fake):
    """Finds one region of the class `dog`, of 3 x 2 pixels at (1, 2) in 60 x 40, and no other.

    Attributes:
        is_away: Whether the server is unreachable.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False

    def send(self, request: Request, timeout_s: float) -> Any:
        if self.is_away:
            raise Unavailable("the server cannot be reached", code="unreachable")
        return super().send(request, timeout_s)

    def segment_images(self, request: Request) -> Segmentation:
        found = super().segment_images(request)
        names = [one["name"] for one in request.fields["classes"]]
        (region,) = found.instances
        kept = (region,) * ("dog" in names)
        fields = {"label": 1 + names.index("dog"), "name": "dog"} if kept else {}
        for one in kept:
            for name, value in fields.items():
                object.__setattr__(one, name, value)
        object.__setattr__(found, "instances", kept)
        return found


@pytest.fixture
def dogs() -> Dogs:
    return Dogs()


@pytest.fixture
def stored(image: Path) -> dict[str, bytes]:  # noqa: F811
    """The tool's images by path; the token is needed."""
    return {"/data/upload/1.png": image.read_bytes()}


@pytest.fixture
def encoded(image: Path) -> str:  # noqa: F811
    return base64.b64encode(image.read_bytes()).decode()


@pytest.fixture
def images(stored: dict[str, bytes]) -> ImageFetcher:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.host != "tool":
            has_token = "authorization" in request.headers
            return httpx2.Response(500 if has_token else 200, content=stored["/data/upload/1.png"])
        if request.headers.get("authorization") != f"Token {TOKEN}":
            return httpx2.Response(401)
        if request.url.path == "/moved":
            return httpx2.Response(302, headers={"location": request.url.query.decode()})
        content = stored.get(request.url.path)
        return httpx2.Response(404) if content is None else httpx2.Response(200, content=content)

    headers = {"Authorization": f"Token {TOKEN}"}
    return ImageFetcher(
        ("allowed.example",),
        home=HOME,
        authorize=lambda _: headers,
        transport=httpx2.MockTransport(answer),
    )


@pytest.fixture
def backend(dogs: Dogs, images: ImageFetcher) -> Backend:
    return Backend(client=Client(dogs, retry=Retry(max_attempts=1)), images=images)


@pytest.fixture
def call(request: pytest.FixtureRequest, backend: Backend) -> Call:
    """Calls the connector that has the name of the test's file; GET without a body."""
    name = request.path.stem.removeprefix("test_")
    app = new_app(import_module(f"connectors.{name}").routes(backend))
    return caller(app)


def caller(app: Any) -> Call:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)

    async def ask(path: str, body: Any = None, **options: Any) -> httpx2.Response:
        async with httpx2.AsyncClient(transport=transport, base_url="http://connector") as client:
            if body is None:
                return await client.get(path, **options)
            return await client.post(path, json=body, **options)

    return ask
