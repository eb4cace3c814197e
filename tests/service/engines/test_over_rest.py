"""What answers of a server mean, over REST."""

import json

import httpcore2
import pytest

from service.engines.engine import EngineError, ImageRefused
from service.engines.over_rest import failure
from service.engines.remote import TryAgain


def answer(status: int, content: bytes = b"", **headers: str) -> httpcore2.Response:
    pairs = [(name.replace("_", "-").encode(), v.encode()) for name, v in headers.items()]
    response = httpcore2.Response(status, headers=pairs, content=content)
    response.read()
    return response


def body(**fields: str | None) -> bytes:
    return json.dumps({"error": fields}).encode()


def test_a_busy_server_is_asked_again() -> None:
    error = failure("http://x", answer(429, body(message="Full."), retry_after="7"))
    assert isinstance(error, TryAgain)
    assert (str(error), error.after_s) == ("Full.", 7.0)
    error = failure("http://x", answer(502, b"<html>"))
    assert isinstance(error, TryAgain)
    assert (str(error), error.after_s) == ("http://x answered with status 502.", None)


@pytest.mark.parametrize(
    ("status", "param", "kind"),
    [
        (422, "images[0]", ImageRefused),
        (413, None, ImageRefused),
        (422, "outputs[0]", EngineError),
        (401, None, EngineError),
        (500, None, EngineError),
    ],
)
def test_a_refusal_is_the_images_or_everybodys(
    status: int, param: str | None, kind: type[Exception]
) -> None:
    error = failure("http://x", answer(status, body(message="m", code="c", param=param)))
    assert type(error) is kind
    assert str(error) == "m"
