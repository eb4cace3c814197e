"""RPCs are refused before they are read, ended when they are too slow, and held during a drain."""

import asyncio
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.grpc import converters, interceptors
from service.grpc.converters import write_tensor
from service.grpc.generated import embed_pb2, features_pb2, image_pb2, segment_pb2
from service.grpc.interceptors import CallInterceptor, DrainGate
from service.grpc.receiving import MAX_OPEN_UNARY
from service.grpc.writing import write_message
from service.monitoring.telemetry import Telemetry
from service.server import Server
from tests.hostile import wire
from tests.hostile.wire import DATA, END_STREAM, SETTINGS, frame, http2_head, literal, opened
from tests.service.conftest import Clock, Encode, Entered, FakeRuntime, Serving, until

LIMIT_S = 20.0
EMBED = "/tipserve.v1.EncoderService/EmbedImages"
FEATURES = "/tipserve.v1.EncoderService/VisualizeFeatures"
SEGMENT = "/tipserve.v1.EncoderService/SegmentImages"
CHECK = "/grpc.health.v1.Health/Check"
LIST = "/tipserve.v1.EncoderService/ListModels"
MALFORMED = "The message does not have this RPC's request type."
PREFACE = wire.PREFACE + frame(SETTINGS)
PING = frame(wire.PING, b"01234567")


async def test_a_closed_gate_holds_rpcs_and_answers_until_it_is_released() -> None:
    gate = DrainGate()
    await gate.enter()
    await gate.wait()
    await gate.hold(quiet_s=0.0, limit_s=LIMIT_S)
    coming = asyncio.ensure_future(gate.enter())
    going = asyncio.ensure_future(gate.wait())
    await asyncio.sleep(0.02)
    assert not coming.done()
    assert not going.done()
    gate.release()
    await asyncio.wait_for(asyncio.gather(coming, going), LIMIT_S)


async def turns() -> None:
    """Let the gate look at its clock."""
    for _ in range(3):
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(("limit_s", "num_calls", "quiet_s"), [(100.0, 3, 1.1), (1.5, 1, 0.9)])
async def test_each_new_call_makes_the_gate_wait_longer_but_not_past_its_limit(
    clock: Clock, limit_s: float, num_calls: int, quiet_s: float
) -> None:
    gate = DrainGate(clock)
    holding = asyncio.ensure_future(gate.hold(quiet_s=1.0, limit_s=limit_s))
    await turns()
    held = []
    for _ in range(num_calls):
        clock.now += 0.9
        held.append(asyncio.ensure_future(gate.enter()))
        await turns()
        assert not holding.done()
    clock.now += quiet_s
    await asyncio.wait_for(holding, LIMIT_S)
    gate.release()
    await asyncio.gather(*held)


@pytest.fixture
def connect() -> Iterator[Callable[..., grpc.Channel]]:
    """Channels with connections of their own, closed at the end."""
    channels = []

    def make(server: Server) -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        channels.append(grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}", options))
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()


def ask(channel: Any, rpc: str, raw: bytes, **options: Any) -> tuple[str, str, str]:
    """Status, reason and text of a unary RPC, with the message as bytes."""
    try:
        _, call = channel.unary_unary(rpc).with_call(raw, timeout=LIMIT_S, **options)
    except grpc.RpcError as error:
        call = error
    details = dict(call.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(details).details:
        detail.Unpack(info)
    return call.code().name, info.reason, call.details() or ""


def embed(image: bytes) -> bytes:
    request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=image)])
    return request.SerializeToString()


async def until_equal(expected: str, once: Callable[[], str]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while await asyncio.to_thread(once) != expected:
            await asyncio.sleep(0.05)


async def test_malformed_messages_and_those_of_too_many_values_are_refused_and_not_quoted(
    serving: Serving, connect: Any
) -> None:
    outputs = embed_pb2.EmbedImagesRequest(outputs=["IMAGE_OUTPUT_CLS1"] * 200_000)
    malformed = (b"\xff\xff", b"\x12\x05ab", b"\x0a\x02\xff\xfe", b"\x12\x04\x0a\xff\xff\xff")
    health, reflection = "health.v1.Health", "reflection.v1alpha.ServerReflection"
    refused, answered = ("INVALID_ARGUMENT", MALFORMED), ("OK", "")
    async with serving() as server:
        channel = connect(server)
        for raw in malformed:
            found = await asyncio.to_thread(ask, channel, EMBED, raw)
            assert found == ("INVALID_ARGUMENT", "malformed_message", MALFORMED)
        for raw in (b"\x12\x00" * 100_000, outputs.SerializeToString()):
            found = await asyncio.to_thread(ask, channel, EMBED, raw)
            assert found[:2] == ("INVALID_ARGUMENT", "too_many_items")
        for rpc, raw, expected in (
            (f"{health}/Check", b"\xff\xff", refused),
            (f"{health}/Check", b"", answered),
            (f"{health}/Watch", b"\xff\xff", refused),
            (f"{reflection}/ServerReflectionInfo", b"\xff\xff", refused),
            (f"{reflection}/ServerReflectionInfo", b"", answered),
            ("reflection.v1.ServerReflection/ServerReflectionInfo", b"\xff\xff", refused),
            ("reflection.v1.ServerReflection/ServerReflectionInfo", b"", answered),
        ):
            answers = channel.stream_stream(f"/grpc.{rpc}")(iter([raw]), timeout=LIMIT_S)
            with suppress(grpc.RpcError):
                await asyncio.to_thread(list, answers)
            assert (answers.code().name, answers.details()) == expected


async def test_an_open_rpc_without_a_handler_is_not_supported(
    serving: Serving, connect: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    # As Health/List, where the package of health has its contract.
    missing = AsyncMock(side_effect=NotImplementedError("Method not implemented!"))
    monkeypatch.setattr("service.grpc.server.health.aio.HealthServicer.Check", missing)
    async with serving() as server:
        code = (await asyncio.to_thread(ask, connect(server), CHECK, b""))[0]
    assert code == "UNIMPLEMENTED"
    assert "Traceback" not in caplog.text


async def test_an_error_of_a_call_that_has_ended_is_not_logged(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    context = Mock(
        invocation_metadata=lambda: None,
        time_remaining=lambda: None,
        peer=lambda: "ipv4:127.0.0.1:1",
        read=AsyncMock(return_value=b"\xff\xff"),
        abort=AsyncMock(side_effect=grpc.aio.InternalError("no such stream")),
    )
    made: Any = grpc.unary_unary_rpc_method_handler(print, embed_pb2.EmbedImagesRequest.FromString)
    async with serving() as server:
        interceptor = CallInterceptor(Telemetry(server.metrics), server.protection, DrainGate())
        details = SimpleNamespace(method=EMBED)
        handler = await interceptor.intercept_service(AsyncMock(return_value=made), details)
        with pytest.raises(asyncio.CancelledError):
            await handler.stream_stream(None, context)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_an_error_that_quotes_the_request_is_not_too_long_for_metadata(
    serving: Serving, connect: Any, encode_image: Encode
) -> None:
    images = [image_pb2.Image(encoded=encode_image())]
    async with serving() as server:
        channel = connect(server)
        for letter in ("x", "\u672c", "\U0001f436"):
            named = embed_pb2.EmbedImagesRequest(images=images, model=letter * 30_000)
            found = await asyncio.to_thread(ask, channel, EMBED, named.SerializeToString())
            assert found[:2] == ("NOT_FOUND", "model_not_found")
            assert found[2].endswith("is served; there is: fake.")
            classes = [segment_pb2.SegmentClass(name=letter * 2000)] * 2
            twice = segment_pb2.SegmentImagesRequest(images=images, classes=classes)
            found = await asyncio.to_thread(ask, channel, SEGMENT, twice.SerializeToString())
            assert found[:2] == ("INVALID_ARGUMENT", "invalid_field")


async def test_an_rpc_without_a_message_is_invalid_and_a_late_message_misses_the_deadline(
    serving: Serving, connect: Any
) -> None:
    never = threading.Event()

    def late() -> Iterator[bytes]:
        never.wait(LIMIT_S)
        yield b""

    async with serving(request_timeout_s=0.3) as server:
        call: Any = connect(server).stream_unary(EMBED)
        for messages, code in ((iter(()), "INVALID_ARGUMENT"), (late(), "DEADLINE_EXCEEDED")):
            with pytest.raises(grpc.RpcError) as caught:
                await asyncio.to_thread(call, messages, timeout=LIMIT_S)
            error: Any = caught.value
            assert error.code().name == code
            assert "x-request-id" in dict(error.trailing_metadata()), "the server's own answer"
        never.set()


async def test_too_many_rpcs_are_refused_and_health_checks_are_answered(
    serving: Serving, connect: Any, encode_image: Encode, runtime: FakeRuntime, entered: Entered
) -> None:
    async with serving(max_concurrent_rpcs=1) as server:
        runtime.gate.clear()
        raw = embed(encode_image())
        first = asyncio.ensure_future(asyncio.to_thread(ask, connect(server), EMBED, raw))
        assert await entered()
        channel = connect(server)
        code, reason, _ = await asyncio.to_thread(ask, channel, EMBED, raw)
        assert (code, reason) == ("RESOURCE_EXHAUSTED", "too_many_rpcs")
        stub: Any = health_pb2_grpc.HealthStub(channel)
        check = stub.Check.future(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
        assert (await asyncio.to_thread(check.result)).status == 1
        runtime.gate.set()
        assert (await first)[0] == "OK"
        assert (await asyncio.to_thread(ask, channel, EMBED, raw))[0] == "OK"


async def test_watches_of_a_connection_are_limited_and_refuse_nothing_else(
    serving: Serving, connect: Any
) -> None:
    async with serving() as server:
        channel = connect(server)
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        watches = [stub.Watch(request, timeout=LIMIT_S) for _ in range(16)]
        for watch in watches:
            await asyncio.to_thread(next, watch)
        refused = stub.Watch(request, timeout=LIMIT_S)
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(next, refused)
        error: Any = caught.value
        assert error.code().name == "RESOURCE_EXHAUSTED"
        assert (await asyncio.to_thread(ask, channel, LIST, b""))[0] == "OK"
        other: Any = health_pb2_grpc.HealthStub(connect(server))
        others = [other.Watch(request, timeout=LIMIT_S) for _ in range(16)]
        for watch in others:
            await asyncio.to_thread(next, watch)
        for watch in watches:
            watch.cancel()
        await until_equal("OK", lambda: ask(channel, CHECK, b"")[0])


async def test_more_watches_than_checks_may_run_and_checks_are_answered(
    serving: Serving, connect: Any
) -> None:
    request = health_pb2.HealthCheckRequest()
    async with serving() as server:
        for _ in range(1 + MAX_OPEN_UNARY // 16):
            stub: Any = health_pb2_grpc.HealthStub(connect(server))
            for watch in [stub.Watch(request, timeout=LIMIT_S) for _ in range(16)]:
                await asyncio.to_thread(next, watch)
        assert (await asyncio.to_thread(ask, connect(server), CHECK, b""))[0] == "OK"


async def test_a_message_over_the_limit_is_refused(serving: Serving, connect: Any) -> None:
    raw = embed(bytes(8_000_000))
    limits = {"max_image_bytes": 1_000_000, "max_request_bytes": 1_000_000}
    async with serving(**limits) as server:
        channel = connect(server)
        code, _, text = await asyncio.to_thread(ask, channel, EMBED, raw)
        assert code == "RESOURCE_EXHAUSTED"
        assert "larger than max" in text
        assert server.protection.body_memory.num_bytes == 0
        name = health_pb2.HealthCheckRequest(service="x" * 4096).SerializeToString()
        found = await asyncio.to_thread(ask, channel, CHECK, name)
        assert found[:2] == ("INVALID_ARGUMENT", "request_too_large")


@pytest.mark.parametrize("rpc", [EMBED, LIST, CHECK])
async def test_compressed_messages_are_refused(serving: Serving, connect: Any, rpc: str) -> None:
    async with serving() as server:
        found = await asyncio.to_thread(
            ask, connect(server), rpc, bytes(1_000_000), compression=grpc.Compression.Gzip
        )
        assert found[0] == "UNIMPLEMENTED"
        assert "gzip" in found[2]


async def test_answers_are_not_compressed_for_a_client_that_accepts_it(serving: Serving) -> None:
    block = http2_head(LIST.encode()) + literal(b"grpc-accept-encoding", b"identity, gzip")
    asked = opened(1, block=block) + frame(DATA, bytes(5), flags=END_STREAM, stream=1)
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.ports["grpc"])
        writer.write(PREFACE + asked)
        kind = None
        async with asyncio.timeout(LIMIT_S):
            while kind != DATA:
                head = await reader.readexactly(9)
                kind, payload = head[3], await reader.readexactly(int.from_bytes(head[:3]))
        assert payload[0] == 0, "the flag of a compressed message"
        assert b"fake" in payload
        writer.close()
        await writer.wait_closed()


async def test_a_refused_message_is_freed_with_its_rpc(serving: Serving, connect: Any) -> None:
    message = bytes(1_000_000)
    async with serving() as server:
        rpc: Any = connect(server).unary_unary(CHECK)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(5):
                with pytest.raises(grpc.RpcError):
                    await asyncio.to_thread(rpc, message, timeout=LIMIT_S)
            await until(lambda: tracemalloc.get_traced_memory()[0] - before < len(message))
        finally:
            tracemalloc.stop()


async def test_a_health_check_without_a_message_ends_soon(
    serving: Serving, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.grpc.limits.MAX_OPEN_UNARY_S", 0.1)
    never = threading.Event()

    def late() -> Iterator[bytes]:
        never.wait(LIMIT_S)
        yield b""

    async with serving() as server:
        call: Any = connect(server).stream_unary(CHECK)
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(call, late(), timeout=LIMIT_S)
        error: Any = caught.value
        assert error.code().name == "DEADLINE_EXCEEDED"
        assert error.details() == "The deadline passed before the answer was ready."
        never.set()


async def test_messages_share_the_memory_for_bodies(
    serving: Serving, connect: Any, encode_image: Encode, runtime: FakeRuntime, entered: Entered
) -> None:
    raw = embed(encode_image("PNG", size=(60, 60)))
    size = len(raw)
    limits = {f"max_{name}_bytes": size + 100 for name in ("image", "request", "body_memory")}
    async with serving(**limits) as server:
        runtime.gate.clear()
        first = asyncio.ensure_future(asyncio.to_thread(ask, connect(server), EMBED, raw))
        assert await entered()
        assert server.protection.body_memory.num_bytes == size
        channel = connect(server)
        code, reason, _ = await asyncio.to_thread(ask, channel, EMBED, raw)
        assert (code, reason) == ("RESOURCE_EXHAUSTED", "body_memory_full")
        assert (await asyncio.to_thread(ask, channel, LIST, b""))[0] == "OK"
        runtime.gate.set()
        assert (await first)[0] == "OK"
        assert server.protection.body_memory.num_bytes == 0


async def test_the_arrays_of_an_answer_are_freed_before_it_is_written(
    serving: Serving, connect: Any, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps: list[weakref.ref[Any]] = []
    kept: list[bool] = []

    def fill(message: Any, array: Any) -> None:
        maps.append(weakref.ref(array))
        write_tensor(message, array)

    def is_kept() -> bool:
        return any(array() is not None for array in maps)

    def write(message: Any) -> bytes:
        # The thread that made the array may be about to leave its job.
        until = time.monotonic() + 5
        while is_kept() and time.monotonic() < until:
            time.sleep(0.001)
        kept.append(is_kept())
        return write_message(message)

    monkeypatch.setattr(converters, "write_tensor", fill)
    monkeypatch.setattr(interceptors, "write_message", write)
    images = [image_pb2.Image(encoded=encode_image("PNG", size=(500, 500)))]
    request = features_pb2.VisualizeFeaturesRequest(images=images)
    async with serving() as server:
        raw = request.SerializeToString()
        code, *_ = await asyncio.to_thread(ask, connect(server), FEATURES, raw)
    assert (code, kept) == ("OK", [False])


@pytest.mark.usefixtures("no_turns")
async def test_refusals_for_want_of_a_key_wait_until_the_server_drains(
    serving: Serving, connect: Callable[..., grpc.Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(api_keys="k" * 32) as server:
        guard = server._grpc._guard
        channel = connect(server)
        waiting = asyncio.ensure_future(asyncio.to_thread(ask, channel, EMBED, b""))
        await until(lambda: guard._num_waiting == 1)
        with monkeypatch.context() as patch:
            patch.setattr(interceptors, "MAX_WAITING_REFUSALS", 1)
            again = await asyncio.to_thread(ask, channel, EMBED, b"")
        assert again[0] == "UNAUTHENTICATED", "as many wait as may"
        assert not waiting.done()
        server.request_stop()
        assert (await waiting)[0] == "UNAUTHENTICATED"
    assert guard._num_waiting == 0


async def test_an_unread_answer_frees_its_place(
    serving: Serving, connect: Any, encode_image: Encode
) -> None:
    request = segment_pb2.SegmentImagesRequest(
        images=[image_pb2.Image(encoded=encode_image("PNG", size=(1500, 1500)))],
        classes=[segment_pb2.SegmentClass(name="dog")],
        include_scores=True,
    )
    limits = {"max_concurrent_rpcs": 1, "request_timeout_s": 10.0, "client_timeout_s": 0.1}
    async with serving(**limits) as server:
        # Opened as a stream, whose messages are asked for one by one, and never asked.
        stuck: Any = connect(server).unary_stream(SEGMENT)(request.SerializeToString())
        await asyncio.to_thread(stuck.initial_metadata)
        channel = connect(server)
        assert (await asyncio.to_thread(ask, channel, LIST, b""))[1] == "too_many_rpcs"
        await until_equal("OK", lambda: ask(channel, LIST, b"")[0])
        stuck.cancel()


async def test_a_client_that_cancels_an_rpc_keeps_its_connection(
    serving: Serving,
    connect: Any,
    encode_image: Encode,
    runtime: FakeRuntime,
    entered: Entered,
) -> None:
    async with serving() as server:
        runtime.gate.clear()
        left = connect(server).unary_unary(EMBED).future(embed(encode_image()))
        assert await entered()
        assert server._grpc._calls.rpcs.busy_peers()
        left.cancel()
        await until(lambda: not server._grpc._calls.rpcs.busy_peers())
        assert not server._grpc._calls.rpcs.num_unread


async def read_all(address: tuple[str, int], sent: bytes) -> None:
    """Send, and read until the server closes the connection, which it must."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(sent)
    with suppress(ConnectionError):  # a reset closes too
        async with asyncio.timeout(LIMIT_S):
            while await reader.read(4096):
                pass
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def test_a_silent_connection_is_closed(serving: Serving) -> None:
    async with serving(client_timeout_s=0.3, keep_alive_s=0.3) as server:
        address = ("127.0.0.1", server.ports["grpc"])
        await asyncio.gather(*(read_all(address, sent) for sent in (b"", PREFACE[:16], PREFACE)))


async def test_too_many_pings_close_the_connection(serving: Serving) -> None:
    got = b""
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.ports["grpc"])
        writer.write(PREFACE)
        async with asyncio.timeout(LIMIT_S):
            while b"too_many_pings" not in got:
                # One by one: a close with pings unread would be a reset, and lose the reason.
                writer.write(PING)
                with suppress(TimeoutError):
                    got += await asyncio.wait_for(reader.read(4096), 0.1)
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
