"""Error responses: both forms of the body, the headers, and no internals."""

import json
from collections.abc import Iterator

import pytest
from fastapi import Request

from service.call import Call, current_call
from service.errors import InternalError, Overloaded, Unauthenticated
from service.rest.errors import error_response, on_error

SECRET = "secret of the runtime"
PATH = "/v1/images:embed"


@pytest.fixture(autouse=True)
def call() -> Iterator[Call]:
    """The current call."""
    made = Call(request_id="id-1", deadline=1.0, clock=lambda: 0.0, started=0.0)
    token = current_call.set(made)
    yield made
    current_call.reset(token)


def test_headers_say_when_to_retry_and_that_a_key_is_missing() -> None:
    for after_s, header in ((0.1, "1"), (1.0, "1"), (1.2, "2"), (30.0, "30")):
        full = error_response(Overloaded("full", retry_after_s=after_s), PATH)
        assert (full.status_code, full.headers["retry-after"]) == (429, header)
    refused = error_response(Unauthenticated("no"), "/v1/models")
    assert (refused.status_code, refused.headers["www-authenticate"][:7]) == (401, "Bearer ")


@pytest.mark.parametrize("error", [InternalError(SECRET), RuntimeError(SECRET)])
async def test_an_internal_error_sends_only_an_id(error: Exception) -> None:
    request = Request({"type": "http", "method": "POST", "path": PATH, "headers": []})
    response = await on_error(request, error)
    assert (response.status_code, SECRET.encode() in bytes(response.body)) == (500, False)
    answered = json.loads(bytes(response.body))["error"]
    assert (answered["code"], "id-1" in answered["message"]) == ("internal", True)
