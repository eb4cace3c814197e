"""A failure of any kind sends no text of an exception, and leaves no resource held.

The faults are in the runtime, in the data plane behind a transport, and in its messages.
"""

from typing import Any
from unittest.mock import Mock

import pytest

from service import data_plane
from service.grpc import interceptor
from service.server import Server
from tests.service.callers import BOTH, INTERNAL, OK, Answer, Ask, ask_grpc
from tests.service.conftest import Encode, FakeRuntime, Serving, until

SECRET = "the planted secret"
# Each route, and what the data plane makes for it.
RESPONSES = {
    "embed": "EmbedImagesResponse",
    "segment": "SegmentImagesResponse",
    "classify": "ClassifyImagesResponse",
    "features": "MapsResponse",
    "depth": "MapsResponse",
    "infer": "EmbedImagesResponse",
}
EVERY_ROUTE = pytest.mark.parametrize("route", RESPONSES)
SECRETS = (SECRET, "secret of the runtime", "RuntimeError", "AttributeError", "ValueError")


def check_internal(answer: Answer) -> str:
    """It is an internal error, and nothing that the caller can read is a secret."""
    assert answer.status in INTERNAL
    whole = f"{answer.headers} {answer.text} {answer.messages!r}"
    assert not [secret for secret in SECRETS if secret in whole]
    return whole


async def until_nothing_is_held(server: Server) -> None:
    """Wait until in-flight count, admission, queue and body memory return to zero."""
    (model,) = server.models.models()
    await until(
        lambda: (
            not (
                server.admission.num_requests
                or server.admission.num_body_bytes
                or model.budget.num_patches
                or sum(model.queue_depths().values())
            )
        )
    )


@pytest.mark.slow
@BOTH
@EVERY_ROUTE
@pytest.mark.parametrize("fault", ["runtime", "short batch", "data plane", "response"])
async def test_a_failure_sends_only_a_request_id_and_holds_nothing(
    serving: Serving,
    encode_image: Encode,
    monkeypatch: pytest.MonkeyPatch,
    runtime: FakeRuntime,
    ask: Ask,
    route: str,
    fault: str,
) -> None:
    error = RuntimeError(SECRET) if fault == "data plane" else None
    async with serving() as server:
        with monkeypatch.context() as planted:
            if fault in {"data plane", "response"}:
                made = Mock(return_value=SECRET, side_effect=error)
                planted.setattr(data_plane, RESPONSES[route], made)
            else:
                runtime.fault = "raise" if fault == "runtime" else "short"
            answer = await ask(server, encode_image(), route, headers={"x-request-id": "mine"})
        runtime.fault = ""
        assert "mine" in check_internal(answer)
        await until_nothing_is_held(server)
        assert (await ask(server, encode_image(), route)).status in OK


@pytest.mark.parametrize("function", ["parse_message", "write_message"])
async def test_a_message_that_fails_sends_no_text_of_its_error(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, encode_image: Encode, function: str
) -> None:
    def planted(*_: object) -> Any:
        raise ValueError(SECRET)

    async with serving() as server:
        monkeypatch.setattr(interceptor, function, planted)
        check_internal(await ask_grpc(server, encode_image()))
