"""What uvicorn's protocol writes for an answer, and how it says that a client has left."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from service.rest.middleware import WATCH
from service.rest.server import Connection

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = GET.replace(b"GET", b"HEAD")
LIMIT_S = 10


class FakeTransport(asyncio.Transport):
    """Keeps what is written, one entry for each call of the system."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        """One call."""
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        """One call for all."""
        self.writes.append(b"".join(list_of_data))

    def close(self) -> None:
        """Note it."""
        self.is_closed = True

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self.is_closed

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""


def connect(app: ASGIApp) -> tuple[Connection, FakeTransport]:
    config = uvicorn.Config(app, lifespan="off", log_config=None, server_header=False)
    config.load()
    connection, transport = Connection(config, ServerState(), {}), FakeTransport()
    connection.connection_made(transport)
    return connection, transport


def app_of(*bodies: bytes) -> ASGIApp:
    """Answers with these messages of the body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for index, body in enumerate(bodies):
            more = index + 1 < len(bodies)
            await send({"type": "http.response.body", "body": body, "more_body": more})

    return app


async def finish(connection: Connection) -> None:
    async with asyncio.timeout(LIMIT_S):
        while connection.tasks:
            await asyncio.sleep(0)
    connection._unset_keepalive_if_required()


async def test_the_head_is_written_with_the_beginning_of_the_body() -> None:
    connection, transport = connect(app_of(b"one", b"two"))
    connection.data_received(GET)
    await finish(connection)
    first, second, *rest = transport.writes
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert first.endswith(b"\r\n\r\n3\r\none\r\n")
    assert second + b"".join(rest) == b"3\r\ntwo\r\n0\r\n\r\n"


async def test_an_answer_without_a_body_has_its_head() -> None:
    connection, transport = connect(app_of(b"one"))
    connection.data_received(HEAD)
    await finish(connection)
    assert b"".join(transport.writes).endswith(b"\r\n\r\n")


async def test_pipelined_answers_are_whole_and_in_order() -> None:
    connection, transport = connect(app_of(b"one"))
    connection.data_received(GET + HEAD + GET)
    await finish(connection)
    written = b"".join(transport.writes)
    assert written.count(b"HTTP/1.1 200 OK") == 3
    assert written.count(b"one") == 2


async def test_a_head_is_sent_before_the_connection_closes() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    connection, transport = connect(fail)
    connection.data_received(GET)
    await finish(connection)
    assert transport.is_closed
    assert b"".join(transport.writes).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("before", [b"", GET])
async def test_bytes_that_are_not_http_are_answered(before: bytes) -> None:
    connection, transport = connect(app_of(b"one"))
    if before:
        connection.data_received(before)
        await finish(connection)
    connection.data_received(b"\x00\x01\r\n\r\n")
    assert transport.writes[-1].startswith(b"HTTP/1.1 400 ")
    assert transport.is_closed


@pytest.mark.parametrize("leave", [Connection.eof_received, lambda c: c.connection_lost(None)])
@pytest.mark.parametrize("is_early", [True, False])
async def test_a_client_that_leaves_is_seen_once_it_is_watched(
    leave: Callable[[Connection], None], is_early: bool
) -> None:
    connection, _ = connect(app_of(b""))
    connection.data_received(GET)
    watch = dict(connection.scope)["extensions"][WATCH]  # type: ignore[index]
    left: list[bool] = []
    if is_early:
        leave(connection)
        watch(lambda: left.append(True))
    else:
        watch(lambda: left.append(True))
        leave(connection)
    assert left
    left.clear()
    watch(None)
    connection.connection_lost(None)
    assert not left
    await finish(connection)
