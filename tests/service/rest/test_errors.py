"""Error responses: both forms of the body, the headers, and no internals."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import Request, Response

from service.call import Call, current_call
from service.errors import InternalError, InvalidRequest, Overloaded, Unauthenticated
from service.rest.errors import ClientLeft, error_response, on_error

SECRET = "secret of the runtime"


@pytest.fixture
def call() -> Iterator[Call]:
    """The current call."""
    made = Call(request_id="id-1", deadline=1.0, clock=lambda: 0.0, started=0.0)
    token = current_call.set(made)
    yield made
    current_call.reset(token)


def request(path: str = "/v1/images:embed") -> Request:
    return Request({"type": "http", "method": "POST", "path": path, "headers": []})


def body(response: Response) -> Any:
    return json.loads(bytes(response.body))


def test_the_error_is_an_object_and_below_v2_a_message(call: Call) -> None:
    error = InvalidRequest("texts[1] is blank.", code="blank_text", param="texts[1]")
    rest = {"type": error.kind.value, "code": "blank_text", "param": "texts[1]"}
    native = error_response(error, "/v1/texts:embed")
    assert native.status_code == 422
    assert body(native) == {"error": {"message": "texts[1] is blank.", **rest}}
    assert body(error_response(error, "/v2/models/a/infer")) == {"error": error.message, **rest}
    assert call.error == "blank_text"
    assert not {"retry-after", "www-authenticate"} & set(native.headers)


@pytest.mark.parametrize(("after_s", "header"), [(0.1, "1"), (1.0, "1"), (1.2, "2"), (30.0, "30")])
def test_overload_sends_retry_after_in_whole_seconds(
    call: Call, after_s: float, header: str
) -> None:
    response = error_response(Overloaded("full", retry_after_s=after_s), "/v1/images:embed")
    assert (response.status_code, response.headers["retry-after"]) == (429, header)


def test_a_missing_key_sends_the_header_of_http(call: Call) -> None:
    refused = error_response(Unauthenticated("no"), "/v1/models")
    assert (refused.status_code, refused.headers["www-authenticate"][:7]) == (401, "Bearer ")


async def test_an_internal_error_sends_only_an_id(call: Call) -> None:
    for response in (
        await on_error(request(), InternalError(SECRET)),
        await on_error(request(), RuntimeError(SECRET)),
    ):
        assert response.status_code == 500
        assert SECRET.encode() not in bytes(response.body)
        assert body(response)["error"]["code"] == "internal"
        assert "id-1" in body(response)["error"]["message"]


async def test_a_lost_client_is_recorded(call: Call) -> None:
    response = await on_error(request(), ClientLeft())
    assert (response.status_code, call.error) == (499, "client_left")
