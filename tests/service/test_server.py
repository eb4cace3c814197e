"""A whole server in this process: the hard moments of a request, over both transports alike.

The fake runtime can be held, so nothing here depends on how fast anything is.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from service.grpc.generated import embed_pb2, image_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.rest.server import listen
from service.server import Server, main
from service.settings import Settings

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Entered = Callable[[], Awaitable[bool]]
Encode = Callable[..., bytes]
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Outcome:
    """What a caller sees: the status of either transport, the error's code, and the headers."""

    status: str
    code: str | None
    headers: dict[str, str]
    text: str = ""


async def over_rest(server: Server, image: bytes, timeout_ms: int | None = None) -> Outcome:
    headers = {"Content-Type": "image/png"}
    if timeout_ms is not None:
        headers["X-Request-Timeout-Ms"] = str(timeout_ms)
    url = f"http://127.0.0.1:{server.ports['http']}/v1/images:embed"
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        answer = await client.post(url, content=image, headers=headers)
    code = answer.json().get("error", {}).get("code")
    return Outcome(str(answer.status_code), code, dict(answer.headers), answer.text)


async def over_grpc(server: Server, image: bytes, timeout_ms: int | None = None) -> Outcome:
    return await asyncio.to_thread(_over_grpc, server, image, timeout_ms)


def _over_grpc(server: Server, image: bytes, timeout_ms: int | None) -> Outcome:
    request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=image)])
    timeout_s = TIMEOUT_S if timeout_ms is None else timeout_ms / 1000
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        stub = EncoderServiceStub(channel)
        try:
            _, call = stub.EmbedImages.with_call(request, timeout=timeout_s)
        except grpc.RpcError as error:
            call = error
        metadata = dict(call.trailing_metadata() or ())
        details = metadata.pop("grpc-status-details-bin", None)
        reason = None
        if details is not None:
            for detail in status_pb2.Status.FromString(details).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    reason = info.reason
        return Outcome(call.code().name, reason, metadata, call.details() or "")


Ask = Callable[..., Awaitable[Outcome]]
BOTH = pytest.mark.parametrize("ask", [over_rest, over_grpc], ids=["rest", "grpc"])


def status_of(ask: Ask, rest: int, rpc: str) -> str:
    return str(rest) if ask is over_rest else rpc


def sample(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"tipserve_{name}", labels) or 0.0


async def until(condition: Callable[[], bool]) -> None:
    """Give other tasks and threads their turn until something is so."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.001)


@BOTH
async def test_a_good_answer_carries_its_id_and_stage_times(
    serving: Serving, encode_image: Encode, ask: Ask
) -> None:
    async with serving() as server:
        outcome = await ask(server, encode_image())
    assert outcome.status == status_of(ask, 200, "OK")
    assert len(outcome.headers["x-request-id"]) == 32
    stages = [part.split(";")[0] for part in outcome.headers["server-timing"].split(", ")]
    assert stages == ["admit", "decode", "queue", "run", "post", "total"]


@BOTH
async def test_a_full_queue_says_when_to_come_back(
    serving: Serving, encode_image: Encode, runtime: "FakeRuntime", entered: Entered, ask: Ask
) -> None:
    async with serving(max_queue_patches=6, max_batch_patches=6) as server:
        runtime.gate.clear()
        first = asyncio.ensure_future(ask(server, encode_image()))
        assert await entered()
        refused = await ask(server, encode_image())
        runtime.gate.set()
        assert (await first).status == status_of(ask, 200, "OK")
        assert sample(server, "rejected_total", reason="queue_full") == 1
    assert refused.status == status_of(ask, 429, "RESOURCE_EXHAUSTED")
    assert refused.code == "queue_full"
    if ask is over_rest:
        assert refused.headers["retry-after"] == "1"
    else:
        assert refused.headers["grpc-retry-pushback-ms"] == "1000"


@BOTH
@pytest.mark.parametrize("fault", ["raise", "short"])
async def test_our_own_faults_tell_an_id_and_nothing_else(
    serving: Serving,
    encode_image: Encode,
    runtime: "FakeRuntime",
    caplog: pytest.LogCaptureFixture,
    ask: Ask,
    fault: Any,
) -> None:
    async with serving() as server:
        runtime.fault = fault
        outcome = await ask(server, encode_image())
        runtime.fault = ""
        assert (await ask(server, encode_image())).status == status_of(ask, 200, "OK")
    assert outcome.status == status_of(ask, 500, "INTERNAL")
    assert outcome.headers["x-request-id"] in outcome.text
    assert "secret" not in outcome.text
    logged = [r for r in caplog.records if r.exc_info and r.getMessage() == "internal error"]
    assert len(logged) == 1, "the log has the cause"


@BOTH
async def test_a_deadline_that_passes_while_waiting(
    serving: Serving, encode_image: Encode, runtime: "FakeRuntime", entered: Entered, ask: Ask
) -> None:
    async with serving() as server:
        runtime.gate.clear()
        first = asyncio.ensure_future(ask(server, encode_image()))
        assert await entered()
        late = await ask(server, encode_image(), timeout_ms=50)
        await until(lambda: sample(server, "inflight") == 1)
        runtime.gate.set()
        assert (await first).status == status_of(ask, 200, "OK")
    assert late.status == status_of(ask, 504, "DEADLINE_EXCEEDED")
    assert runtime.num_images == 1, "nothing was computed for the late one"


async def hang_up_rest(server: Server, image: bytes) -> None:
    await over_rest(server, image)


async def hang_up_grpc(server: Server, image: bytes) -> None:
    request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=image)])
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        call = EncoderServiceStub(channel).EmbedImages.future(request, timeout=TIMEOUT_S)
        try:
            await asyncio.Event().wait()
        finally:
            call.cancel()


@pytest.mark.parametrize(
    ("send", "method", "code"),
    [
        (hang_up_rest, "POST /v1/images:embed", "499"),
        (hang_up_grpc, "tipserve.v1.EncoderService/EmbedImages", "CANCELLED"),
    ],
    ids=["rest", "grpc"],
)
async def test_a_caller_who_hangs_up_frees_the_queue(
    serving: Serving,
    encode_image: Encode,
    runtime: "FakeRuntime",
    entered: Entered,
    send: Callable[[Server, bytes], Awaitable[None]],
    method: str,
    code: str,
) -> None:
    async with serving() as server:
        runtime.gate.clear()
        running = asyncio.ensure_future(over_rest(server, encode_image()))
        assert await entered()
        leaving = asyncio.ensure_future(send(server, encode_image()))
        await until(lambda: sample(server, "queue_depth", bucket="image 28x28") == 1)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        await until(lambda: sample(server, "abandoned_total", reason="cancelled") == 1)
        assert sample(server, "model_abandoned_total", model="fake", reason="cancelled") == 1
        await until(lambda: sample(server, "requests_total", method=method, code=code) == 1)
        assert sample(server, "queue_depth", bucket="image 28x28") == 0
        assert sample(server, "inflight") == 1
        runtime.gate.set()
        assert (await running).status == "200"
    assert runtime.num_images == 1


@pytest.mark.parametrize(
    ("send", "method", "code"),
    [
        (hang_up_rest, "POST /v1/images:embed", "499"),
        (hang_up_grpc, "tipserve.v1.EncoderService/EmbedImages", "CANCELLED"),
    ],
    ids=["rest", "grpc"],
)
async def test_a_caller_who_hangs_up_while_the_model_runs_frees_the_lane(
    serving: Serving,
    encode_image: Encode,
    runtime: "FakeRuntime",
    entered: Entered,
    send: Callable[[Server, bytes], Awaitable[None]],
    method: str,
    code: str,
) -> None:
    async with serving() as server:
        runtime.gate.clear()
        leaving = asyncio.ensure_future(send(server, encode_image()))
        assert await entered()
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        await until(lambda: sample(server, "abandoned_total", reason="interrupted") == 1)
        assert sample(server, "model_abandoned_total", model="fake", reason="interrupted") == 1
        runtime.gate.set()
        assert (await over_rest(server, encode_image())).status == "200"
        assert sample(server, "requests_total", method=method, code=code) == 1
    assert runtime.num_interrupted == 1


def _texts_over_grpc(server: Server, texts: list[str], num_calls: int) -> list[int]:
    request = embed_pb2.EmbedTextsRequest(texts=texts)
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        stub = EncoderServiceStub(channel)
        calls = [stub.EmbedTexts.future(request, timeout=TIMEOUT_S) for _ in range(num_calls)]
        return [call.result().embeddings.shape[0] for call in calls]


async def test_a_hundred_equal_requests_over_both_compute_each_prompt_once(
    serving: Serving, runtime: "FakeRuntime"
) -> None:
    texts = ["dog", "cat", "sky"]
    async with serving() as server, httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        runtime.gate.clear()
        url = f"http://127.0.0.1:{server.ports['http']}/v1/texts:embed"
        rest = [asyncio.ensure_future(client.post(url, json={"texts": texts})) for _ in range(50)]
        rpcs = asyncio.ensure_future(asyncio.to_thread(_texts_over_grpc, server, texts, 50))
        await until(lambda: sample(server, "text_cache_coalesced_total") == 99 * len(texts))
        runtime.gate.set()
        assert {(await answer).status_code for answer in rest} == {200}
        assert await rpcs == [len(texts)] * 50
    assert runtime.num_texts == len(texts)


async def test_a_caller_who_hangs_up_while_sending_is_no_error(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /v1/images:embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    async with serving() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.ports["http"])
        writer.write(head + b"Content-Length: 100\r\n\r\nonly a little")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        method = "POST /v1/images:embed"
        await until(lambda: sample(server, "requests_total", method=method, code="499") == 1)
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


async def test_before_the_model_is_loaded_requests_are_refused(
    make_settings: Any, encode_image: Encode, tmp_path: Path
) -> None:
    loading = asyncio.Event()
    loop = asyncio.get_running_loop()
    ports_file = tmp_path / "ports.json"

    def load(settings: object, metrics: object, source: object) -> Any:
        asyncio.run_coroutine_threadsafe(loading.wait(), loop).result(TIMEOUT_S)
        raise ValueError("the warm-up failed")

    server = Server(make_settings(ports_file=ports_file), load)
    running = asyncio.ensure_future(server.run())
    await until(ports_file.exists)
    outcomes = [await over_rest(server, encode_image()), await over_grpc(server, encode_image())]
    assert [o.status for o in outcomes] == ["503", "UNAVAILABLE"]
    loading.set()
    with pytest.raises(ValueError, match="warm-up failed"):
        await running
    assert not server.ready.is_set()


async def test_a_port_that_is_taken_is_an_error(serving: Serving, make_settings: Any) -> None:
    async with serving() as server:
        port = server.ports["http"]
        with pytest.raises(OSError, match=rf"port {port} \(.* in use\); .* --http-port"):
            Server(make_settings(http_port=port))


async def test_answers_are_not_held_back_for_an_acknowledgement() -> None:
    no_delay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def look(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        no_delay.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listening = listen("127.0.0.1", 0)
    async with await asyncio.start_server(look, sock=listening):
        _, writer = await asyncio.open_connection(*listening.getsockname())
        assert await asyncio.wait_for(no_delay, TIMEOUT_S) == 1
        writer.close()


@pytest.mark.parametrize("is_late", [False, True])
def test_only_errors_of_the_start_are_logged_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_settings: Any,
    is_late: bool,
) -> None:
    class FailingServer:
        def __init__(self, settings: Settings, **_: object) -> None:
            self.ready = asyncio.Event()

        async def run(self) -> None:
            if is_late:
                self.ready.set()
            raise OSError("the disk is full")

    monkeypatch.setattr("service.server.Server", FailingServer)
    # The handlers of the process belong to the test runner.
    monkeypatch.setattr("service.server._stop_on_signals", lambda server: None)
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        assert main(make_settings(log_format="text")) == 1
    finally:
        logging.root.handlers, logging.root.level = handlers, level
    logged = capsys.readouterr()
    text = logged.out + logged.err
    assert "the disk is full" in text
    assert ("Traceback" in text) == is_late
    assert ("could not start" in text) != is_late
