"""The middleware: limits of a body, the deadline, a client that leaves, and what is given back."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
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
SOON = {"x-request-timeout-ms": "30"}
NOTHING: Mapping[str, str] = {}
Handle = Callable[[Receive, Send], Awaitable[None]]


def chunk(num_bytes: int = 1, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": b"x" * num_bytes, "more_body": more}


async def read_all(receive: Receive) -> int:
    num_bytes, more = 0, True
    while more:
        message = await receive()
        num_bytes += len(message["body"])
        more = message["more_body"]
    return num_bytes


async def answer(receive: Receive, send: Send) -> None:
    """Read the body, then answer."""
    await read_all(receive)
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"ok"})


async def never(*_: object) -> None:
    await asyncio.Event().wait()


@dataclass
class Desk:
    """Asks a middleware by ASGI, and counts what its requests hold."""

    protection: Protection
    admission: Admission
    metrics: Metrics
    num_inside: int = 0
    sent: list[Message] = field(default_factory=list)
    asked: list[tuple[str, float]] = field(default_factory=list)
    client: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)

    def enter(self, *_: object) -> Callable[[], None]:
        """As `ApiKeys.enter`."""
        self.num_inside += 1
        return self.leave

    def leave(self) -> None:
        self.num_inside -= 1

    async def ask(
        self,
        *messages: Message,
        handle: Handle = answer,
        send: Send | None = None,
        method: str = "POST",
        headers: Mapping[str, str] = NOTHING,
    ) -> int:
        """Send a request; returns the status of the answer, 0 without one."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            asked = current_call.get()
            self.asked.append((scope["method"], asked.deadline - asked.started))
            await handle(receive, send)

        for message in messages:
            self.client.put_nowait(message)
        self.sent.clear()
        scope = {
            "type": "http",
            "method": method,
            "path": "/v1/x",
            "headers": [(n.encode(), value.encode("latin-1")) for n, value in headers.items()],
        }
        middleware = CallMiddleware(app, Telemetry(self.metrics), self.protection, self.admission)
        async with asyncio.timeout(LIMIT_S):
            await middleware(scope, self.client.get, send or self.keep)
        return self.sent[0]["status"] if self.sent else 0

    async def keep(self, message: Message) -> None:
        self.sent.append(message)

    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    def holds_nothing(self) -> bool:
        held = self.admission.num_requests, self.admission.num_body_bytes, self.num_inside
        return held == (0, 0, 0)


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


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-length": "80"}, 200),
        ({"content-length": "81"}, 413),
        ({"content-length": "9" * 5000}, 413),
        ({"content-encoding": "gzip"}, 415),
        ({"content-encoding": "Identity"}, 200),
        ({"x-request-timeout-ms": "0"}, 422),
        ({"x-request-timeout-ms": "\xb2"}, 422),
        ({"x-request-timeout-ms": "9" * 5000}, 422),
        ({"x-request-priority": "4"}, 422),
    ],
)
async def test_a_head_is_checked_before_the_body_is_read(
    desk: Desk, headers: dict[str, str], status: int
) -> None:
    assert await desk.ask(chunk(), headers=headers) == status
    assert desk.client.empty() == (status == 200)
    assert desk.holds_nothing()


async def test_bytes_are_counted_as_they_arrive_whatever_was_announced(desk: Desk) -> None:
    half = chunk(40, more=True)
    assert await desk.ask(half, chunk(40)) == 200
    assert await desk.ask(half, half, chunk(1)) == 413
    assert await desk.ask(half, chunk(41), headers={"content-length": "1"}) == 413
    assert desk.holds_nothing()


async def test_bodies_share_their_memory(desk: Desk) -> None:
    seen: list[int] = []

    async def look(receive: Receive, send: Send) -> None:
        await receive()
        seen.append(desk.admission.num_body_bytes)
        await answer(receive, send)

    assert await desk.ask(chunk(30, more=True), chunk(10), handle=look) == 200
    other = desk.admission.enter(call())
    other.hold_body(70)
    assert await desk.ask(chunk(31)) == 429
    assert desk.headers()[b"retry-after"] == b"1"
    other.release()
    assert await desk.ask(chunk(31)) == 200
    assert seen == [30]
    assert desk.holds_nothing()


async def test_the_deadline_ends_an_answer_that_nobody_reads(desk: Desk) -> None:
    async def send(message: Message) -> None:
        await desk.keep(message)
        if message["type"] == "http.response.body":
            await never()

    assert await desk.ask(chunk(), send=send, headers=SOON) == 200
    assert len(desk.sent) == 2, "no second answer"
    assert desk.holds_nothing()


@pytest.mark.parametrize(("asked_ms", "left_s"), [("2000", 2.0), ("60000", 5.0), (None, 5.0)])
async def test_a_client_may_shorten_the_deadline_but_not_extend_it(
    desk: Desk, asked_ms: str | None, left_s: float
) -> None:
    await desk.ask(chunk(), headers={"x-request-timeout-ms": asked_ms} if asked_ms else {})
    assert desk.asked[0][1] == pytest.approx(left_s)


async def test_connections_close_while_the_server_stops(desk: Desk) -> None:
    await desk.ask(chunk())
    assert b"connection" not in desk.headers()
    assert desk.headers().keys() == {b"x-request-id", b"server-timing"}
    desk.admission.announce_drain()
    assert await desk.ask(chunk()) == 200
    assert desk.headers()[b"connection"] == b"close"
