"""Error responses: both forms of the body, the headers, and no internals."""

import json
from collections.abc import Iterator

import pytest
from fastapi import Request

from service.call import Call, current_call
from service.errors import InternalError, InvalidRequest, Overloaded, Unauthenticated
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


def test_the_error_is_an_object_and_below_v2_a_message(call: Call) -> None:
    error = InvalidRequest("texts[1] is blank.", code="blank_text", param="texts[1]")
    rest = {"type": error.kind.value, "code": "blank_text", "param": "texts[1]"}
    native = error_response(error, "/v1/texts:embed")
    assert native.status_code == 422
    assert json.loads(bytes(native.body)) == {"error": {"message": "texts[1] is blank.", **rest}}
    v2 = error_response(error, "/v2/models/a/infer")
    assert json.loads(bytes(v2.body)) == {"error": error.message, **rest}
    assert call.error == "blank_text"
    assert not {"retry-after", "www-authenticate"} & set(native.headers)


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
