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


@pytest.mark.parametrize(("after_s", "header"), [(0.1, "1"), (1.0, "1"), (1.2, "2"), (30.0, "30")])
def test_overload_sends_retry_after_in_whole_seconds(after_s: float, header: str) -> None:
    response = error_response(Overloaded("full", retry_after_s=after_s), PATH)
    assert (response.status_code, response.headers["retry-after"]) == (429, header)


def test_a_missing_key_sends_the_header_of_http() -> None:
    refused = error_response(Unauthenticated("no"), "/v1/models")
    assert (refused.status_code, refused.headers["www-authenticate"][:7]) == (401, "Bearer ")


@pytest.mark.parametrize("error", [InternalError(SECRET), RuntimeError(SECRET)])
async def test_an_internal_error_sends_only_an_id(error: Exception) -> None:
    request = Request({"type": "http", "method": "POST", "path": PATH, "headers": []})
    response = await on_error(request, error)
    assert response.status_code == 500
    assert SECRET.encode() not in bytes(response.body)
    answered = json.loads(bytes(response.body))["error"]
    assert answered["code"] == "internal"
    assert "id-1" in answered["message"]
