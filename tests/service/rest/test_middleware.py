"""The middleware: limits of a body, the deadline, and what is given back."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.admission import Admission
from service.call import current_call
from service.errors import Unauthenticated
from service.monitoring.metrics import Metrics
from service.monitoring.telemetry import Telemetry
from service.rest.middleware import WRONG_KEY_DELAY_S, CallMiddleware
from service.safety.protection import Protection
from tests.service.conftest import call

LIMIT_S = 20.0


def chunk(num_bytes: int = 1, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": b"x" * num_bytes, "more_body": more}


@dataclass
class Desk:
    """Asks a middleware by ASGI, and counts what its requests hold."""

    protection: Protection
    admission: Admission
    metrics: Metrics
    num_inside: int = 0
    is_read: bool = True
    sent: list[Message] = field(default_factory=list)
    timeouts_s: list[float] = field(default_factory=list)
    client: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)

    def enter(self, *_: object) -> Callable[[], None]:
        """As `ApiKeys.enter`."""
        self.num_inside += 1
        return self.leave

    def leave(self) -> None:
        self.num_inside -= 1

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then answer."""
        self.timeouts_s.append(current_call.get().deadline - current_call.get().started)
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"ok"})

    async def keep(self, message: Message) -> None:
        self.sent.append(message)
        if not self.is_read and message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def ask(self, *messages: Message, **headers: str) -> int:
        """Send a request; returns the status of the answer."""
        for message in messages:
            self.client.put_nowait(message)
        self.sent.clear()
        sent = [
            (n.replace("_", "-").encode(), value.encode("latin-1")) for n, value in headers.items()
        ]
        scope = {"type": "http", "method": "POST", "path": "/v1/x", "headers": sent}
        telemetry = Telemetry(self.metrics)
        middleware = CallMiddleware(self.answer, telemetry, self.protection, self.admission)
        async with asyncio.timeout(LIMIT_S):
            await middleware(scope, self.client.get, self.keep)
        assert self.num_inside == 0
        return int(self.sent[0]["status"])

    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


@pytest.fixture
def desk(make_settings: Any, metrics: Metrics) -> Desk:
    """Bodies have at most 80 bytes, all together at most 100; requests at most 5 s."""
    limits = {"max_image_bytes": 80, "max_request_bytes": 80, "request_timeout_s": 5.0}
    protection = Protection(make_settings(**limits), metrics)
    admission = Admission(metrics, max_body_bytes=100, max_work_bytes=1)
    admission.open()
    desk = Desk(protection, admission, metrics)
    protection.keys = cast("Any", desk)
    return desk


async def test_a_wrong_key_is_refused_after_a_pause(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Connections that ask again and again would take the event loop from other callers.
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    def refuse(*_: object) -> None:
        raise Unauthenticated("The API key is unknown.")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await desk.ask(chunk()) == 200
    assert pauses == []
    monkeypatch.setattr(desk, "enter", refuse)
    assert await desk.ask(chunk()) == 401
    assert pauses == [WRONG_KEY_DELAY_S]


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("content_length", "80", 200),
        ("content_length", "81", 413),
        ("content_length", "9" * 5000, 413),
        ("content_encoding", "gzip", 415),
        ("content_encoding", "Identity", 200),
        ("x_request_timeout_ms", "0", 422),
        ("x_request_timeout_ms", "\xb2", 422),
        ("x_request_timeout_ms", "9" * 5000, 422),
        ("x_request_timeout_ms", "0" * 5000 + "1", 422),
        ("x_request_priority", "4", 422),
    ],
)
async def test_a_head_is_checked_before_the_body_is_read(
    desk: Desk, header: str, value: str, status: int
) -> None:
    assert await desk.ask(chunk(), **{header: value}) == status
    assert desk.client.empty() == (status == 200)


async def test_bytes_are_counted_as_they_arrive_and_bodies_share_their_memory(desk: Desk) -> None:
    half = chunk(40, more=True)
    assert await desk.ask(half, chunk(40)) == 200
    assert await desk.ask(half, half, chunk(1)) == 413
    assert await desk.ask(half, chunk(41), content_length="1") == 413
    assert desk.admission.num_body_bytes == 0
    other = desk.admission.enter(call())
    other.hold_body(70)
    assert await desk.ask(chunk(31)) == 429
    assert desk.headers()[b"retry-after"] == b"1"
    other.release()
    assert await desk.ask(chunk(31)) == 200


async def test_the_deadline_ends_an_answer_that_nobody_reads(desk: Desk) -> None:
    desk.is_read = False
    assert await desk.ask(chunk(), x_request_timeout_ms="30") == 200
    assert len(desk.sent) == 2, "no second answer"


async def test_a_client_may_shorten_the_deadline_but_not_extend_it(desk: Desk) -> None:
    await desk.ask(chunk())
    for asked_ms in ("2000", "60000"):
        await desk.ask(chunk(), x_request_timeout_ms=asked_ms)
    assert desk.timeouts_s == pytest.approx([5.0, 2.0, 5.0])


async def test_connections_close_while_the_server_stops(desk: Desk) -> None:
    await desk.ask(chunk())
    assert desk.headers().keys() == {b"x-request-id", b"server-timing"}
    desk.admission.announce_drain()
    assert await desk.ask(chunk()) == 200
    assert desk.headers()[b"connection"] == b"close"
