"""A whole server: refusals, deadlines, lost callers over both protocols; its start.

The fake runtime can be held, so nothing here depends on how fast anything is.
"""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from service.rest.server import listen
from service.server import Server, main
from service.settings import Settings
from tests.service.callers import (
    BOTH,
    INTERNAL,
    INVALID,
    LIMIT_S,
    OK,
    UNAVAILABLE,
    Answer,
    Ask,
    ask_grpc,
    ask_rest,
)
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving, sample, until

KEY = "a-key-that-is-long-enough-to-be-one"


def stages(answer: Answer) -> list[str]:
    """Names in `Server-Timing`; the stages together are not longer than the request."""
    parts = [part.split(";dur=") for part in answer.headers["server-timing"].split(", ")]
    durations = {name: float(milliseconds) for name, milliseconds in parts}
    rounding = 0.01 * len(durations)
    assert sum(durations.values()) <= 2 * durations["total"] + rounding
    return list(durations)


@BOTH
async def test_answers_and_errors_carry_their_id_and_stage_times(
    serving: Serving, encode_image: Encode, ask: Ask
) -> None:
    key = {"x-api-key": KEY}
    async with serving(api_keys=KEY) as server:
        good = await ask(server, encode_image(), headers=key)
        broken = await ask(server, b"no image", headers=key)
        keyless = await ask(server, encode_image())
    assert good.status in OK
    assert len(good.headers["x-request-id"]) == 32
    assert stages(good) == ["admit", "decode", "queue", "run", "post", "total"]
    assert (broken.status in INVALID, stages(broken)) == (True, ["decode", "total"])
    assert keyless.status in {"401", "UNAUTHENTICATED"}
    assert stages(keyless) == ["total"]


@pytest.mark.parametrize("is_terminal", [True, False])
async def test_a_terminal_shows_the_address_once_the_server_is_ready(
    serving: Serving,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_terminal: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    caplog.set_level(logging.INFO)
    async with serving() as server:
        line = f"open http://127.0.0.1:{server.ports['http']}/ (Ctrl+C stops)"
        assert (caplog.messages[-1] == line) is is_terminal


@BOTH
async def test_an_internal_error_sends_an_id_and_logs_its_cause(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    caplog: pytest.LogCaptureFixture,
    ask: Ask,
) -> None:
    async with serving() as server:
        runtime.fault = "raise"
        answer = await ask(server, encode_image(), headers={"x-request-id": "me"})
        runtime.fault = ""
        assert (await ask(server, encode_image())).status in OK
    assert answer.status in INTERNAL
    assert answer.headers["x-request-id"] == "me"
    assert "request id me" in answer.text
    assert "secret" not in answer.text
    assert len([r for r in caplog.records if r.exc_info and r.msg == "internal error"]) == 1


@BOTH
async def test_a_caller_who_hangs_up_frees_the_lane_and_is_counted(
    serving: Serving, encode_image: Encode, runtime: FakeRuntime, entered: Entered, ask: Ask
) -> None:
    labels = {"protocol": "http", "method": "POST /v1/images:embed", "code": "499"}
    if ask is ask_grpc:
        method = "tipserve.v1.EncoderService/EmbedImages"
        labels = {"protocol": "grpc", "method": method, "code": "CANCELLED"}
    async with serving() as server:
        runtime.gate.clear()
        leaving = asyncio.ensure_future(ask(server, encode_image()))
        assert await entered()
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        reason = {"reason": "interrupted"}
        await until(lambda: sample(server.metrics, "abandoned_total", **reason) == 1)
        assert sample(server.metrics, "model_abandoned_total", model="fake", **reason) == 1
        await until(lambda: sample(server.metrics, "requests_total", **labels) == 1)
        assert sample(server.metrics, "inflight") == 0
        runtime.gate.set()
        assert (await ask_rest(server, encode_image())).status == "200"
    assert runtime.num_images == 1


async def test_a_caller_who_hangs_up_while_sending_is_no_error(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /v1/images:embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    async with serving() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.ports["http"])
        writer.write(head + b"Content-Length: 100\r\n\r\nonly a little")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        labels = {"protocol": "http", "method": "POST /v1/images:embed", "code": "499"}
        await until(lambda: sample(server.metrics, "requests_total", **labels) == 1)
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


async def test_before_the_model_is_loaded_requests_are_refused(
    make_settings: Callable[..., Settings], encode_image: Encode, tmp_path: Path
) -> None:
    loading = asyncio.Event()
    loop = asyncio.get_running_loop()
    ports_file = tmp_path / "ports.json"

    def load(settings: object, metrics: object, source: object) -> Any:
        asyncio.run_coroutine_threadsafe(loading.wait(), loop).result(LIMIT_S)
        raise ValueError("the warm-up failed")

    server = Server(make_settings(ports_file=ports_file), load)
    running = asyncio.ensure_future(server.run())
    await until(ports_file.exists)
    for ask in (ask_rest, ask_grpc):
        assert (await ask(server, encode_image())).status in UNAVAILABLE
    loading.set()
    with pytest.raises(ValueError, match="warm-up failed"):
        await running
    assert not server.ready.is_set()


@pytest.mark.parametrize(("limit", "is_short"), [(2**29, True), (2**40, False), (None, False)])
async def test_memory_that_callers_can_exceed_is_a_warning(
    serving: Serving,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    limit: int | None,
    is_short: bool,
) -> None:
    monkeypatch.setattr("service.server.memory_limit", lambda: limit)
    async with serving():
        pass
    assert ("exceed its memory limit" in caplog.text) == is_short


async def test_a_port_that_is_taken_is_an_error_that_names_the_flag(
    make_settings: Callable[..., Settings],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port} \(.* in use\); .* --http-port"):
            Server(make_settings(http_port=port))


async def test_accepted_connections_send_without_delay() -> None:
    no_delay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def look(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        no_delay.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listening = listen("127.0.0.1", 0)
    async with await asyncio.start_server(look, sock=listening):
        _, writer = await asyncio.open_connection(*listening.getsockname())
        assert await asyncio.wait_for(no_delay, LIMIT_S) == 1
        writer.close()


@pytest.mark.parametrize("is_late", [False, True])
def test_only_errors_of_the_start_are_logged_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_settings: Callable[..., Settings],
    is_late: bool,
) -> None:
    class FailingServer:
        def __init__(self, settings: Settings, **_: object) -> None:
            self.ready = asyncio.Event()
            self.request_stop = self.ready.clear

        async def run(self) -> None:
            if is_late:
                self.ready.set()
            raise OSError("the disk is full")

    monkeypatch.setattr("service.server.Server", FailingServer)
    # The handlers of the process belong to the test runner.
    monkeypatch.setattr("service.server.on_stop_signals", lambda stop, *, is_worker: None)
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        assert main(make_settings()) == 1
    finally:
        logging.root.handlers, logging.root.level = handlers, level
    logged = capsys.readouterr()
    text = logged.out + logged.err
    assert "the disk is full" in text
    assert ("Traceback" in text) == is_late
    assert ("could not start" in text) != is_late
