"""Keys, errors and images of every connector."""

import base64

import pytest

from connectors import app as connector_app
from connectors.app import AnyBody, Backend, ImageFetcher, Refused, get, new_app, post
from tests.connectors.conftest import HOME, Dogs, caller
from tipserve_client import InternalError, NotFound

PATH = "/data/upload/1.png"


def _fails(_: AnyBody) -> None:
    raise ValueError("a secret")


def _is_lost(_: AnyBody) -> None:
    raise NotFound("no model of this name")


ROUTES = [
    get("/health", dict),
    post("/echo", AnyBody, lambda _: {"ok": True}),
    post("/fails", AnyBody, _fails),
    post("/lost", AnyBody, _is_lost),
]


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({}, "/echo", 401),
        ({"Authorization": "Bearer wrong"}, "/echo", 401),
        ({"Authorization": "Basic ?"}, "/echo", 401),
        ({"Authorization": "Bearer key"}, "/echo", 200),
        ({"Authorization": f"Basic {base64.b64encode(b'any:key').decode()}"}, "/echo", 200),
        ({}, "/echo?api_key=key", 200),
    ],
)
async def test_a_key_is_taken_as_tools_send_it(
    headers: dict[str, str], path: str, status: int
) -> None:
    call = caller(new_app(ROUTES, key="key"))
    assert (await call(path, {}, headers=headers)).status_code == status
    assert (await call("/health")).status_code == 200


async def test_errors_say_what_to_change_and_ours_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = caller(new_app(ROUTES))
    assert (await call("/echo", [])).status_code == 400
    failed = await call("/fails", {})
    assert failed.status_code == 500
    assert "secret" not in failed.text
    lost = await call("/lost", {})
    assert (lost.status_code, lost.json()["message"]) == (502, "no model of this name")
    monkeypatch.setattr(connector_app, "MAX_BODY_BYTES", 100)
    assert (await call("/echo", {"x": "y" * 100})).status_code == 413
    assert (await call("/echo", {})).status_code == 200


def test_the_tools_images_are_fetched_with_its_token(
    images: ImageFetcher, stored: dict[str, bytes]
) -> None:
    for url in (PATH, HOME + PATH, f"{HOME}/moved?{PATH}", f"{HOME}/moved?http://allowed.example/"):
        assert images.fetch(url) == stored[PATH]
    # Without the token, which is the tool's.
    assert images.fetch("https://allowed.example/x.png") == stored[PATH]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://other.example/x.png", "not allowed"),
        ("http://allowed.example:81/x.png", "not allowed"),
        ("http://allowed.example@other.example/", "not allowed"),
        ("http://tool/x.png", "not allowed"),
        (f"{HOME}/moved?http://other.example/", "not allowed"),
        (f"{HOME}/moved?/moved?/moved?/moved?/moved?/moved", "redirected"),
        ("s3://bucket/x.png", "not allowed"),
        ("file:///etc/hostname", "not allowed"),
        ("/data/upload/deleted.png", "status 404"),
        ("data:image/png;base64,?", "base64"),
    ],
)
def test_no_other_image_is_fetched(images: ImageFetcher, url: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        images.fetch(url)


def test_a_large_image_is_refused(images: ImageFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector_app, "MAX_IMAGE_BYTES", 50)
    with pytest.raises(Refused, match="more than 50 bytes"):
        images.fetch(PATH)


def test_without_a_tool_a_relative_url_is_refused() -> None:
    with pytest.raises(Refused, match="no host"):
        ImageFetcher().fetch(PATH)


def test_the_version_is_of_the_named_model(backend: Backend, dogs: Dogs) -> None:
    assert backend.model_version() == "fake-x"
    other = Backend(client=backend.client, model="other", images=backend.images)
    with pytest.raises(Refused, match="other"):
        other.model_version()
    assert InternalError not in connector_app.STATUS
    assert not dogs.requests
