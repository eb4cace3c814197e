"""The interceptor: keys, limits, slow and malformed messages, errors, and what is given back."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import pytest

from service.grpc.generated import embed_pb2, segment_pb2
from service.server import Server
from tests.service.callers import (
    ENCODER,
    LIMIT_S,
    Answer,
    ask_grpc,
    call_rpc,
    error_reason,
    grpc_channel,
    message,
)
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving, sample, until

EMBED, LIST = f"{ENCODER}/EmbedImages", f"{ENCODER}/ListModels"
CHECK = "/grpc.health.v1.Health/Check"
MALFORMED = "The message does not have this RPC's request type."


def held(server: Server) -> tuple[int, int, int]:
    """What requests hold."""
    admission = server.admission
    return admission.num_requests, admission.num_body_bytes, admission.num_admitted


async def ask_late(server: Server, *, is_complete: bool = False) -> Answer:
    """Open a unary RPC, and send no message; `is_complete` says that none will come."""
    never = asyncio.Event()

    async def messages() -> AsyncIterator[bytes]:
        if not is_complete:
            await never.wait()
            yield b""

    async with grpc_channel(server) as channel:
        call = channel.stream_unary(EMBED)(messages(), timeout=LIMIT_S)
        with suppress(grpc.aio.AioRpcError):
            await call
        trailers = dict(await call.trailing_metadata())
        code, text = await call.code(), await call.details()
    reason = error_reason(trailers["grpc-status-details-bin"])
    return Answer(status=code.name, code=reason, headers=trailers, text=text)


@contextmanager
def nothing_held_after(server: Server) -> Iterator[None]:
    yield
    assert held(server) == (0, 0, 0)


async def test_an_error_has_its_reason_its_id_and_its_times(serving: Serving) -> None:
    async with serving() as server:
        with nothing_held_after(server):
            broken = await ask_grpc(server, b"no image", headers={"x-request-id": "me"})
            wrong = await ask_grpc(server, b"", headers={"x-request-priority": "4"})
    assert (broken.status, broken.code) == ("INVALID_ARGUMENT", "invalid_image")
    assert broken.headers["x-request-id"] == "me"
    assert "total;dur=" in broken.headers["server-timing"]
    assert (wrong.status, wrong.code) == ("INVALID_ARGUMENT", "unknown_priority")


async def test_malformed_messages_and_those_of_too_many_values_are_refused_and_not_quoted(
    serving: Serving,
) -> None:
    many = embed_pb2.EmbedImagesRequest(outputs=["IMAGE_OUTPUT_CLS1"] * 200_000)
    async with serving() as server:
        with nothing_held_after(server):
            for raw in (b"\xff\xff", b"\x12\x05ab", b"\x0a\x02\xff\xfe", b"\x12\x04\x0a\xff\xff"):
                found = await call_rpc(server, EMBED, raw)
                assert (found.status, found.code) == ("INVALID_ARGUMENT", "malformed_message")
                assert found.text.startswith(MALFORMED)
            for raw in (b"\x12\x00" * 100_000, many.SerializeToString()):
                found = await call_rpc(server, EMBED, raw)
                assert (found.status, found.code) == ("INVALID_ARGUMENT", "too_many_items")


async def test_a_message_that_is_missing_or_late_is_an_error_and_frees_its_place(
    serving: Serving, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.grpc.interceptor.NUM_MESSAGES", 1)
    async with serving() as server:
        with nothing_held_after(server):
            missing = await ask_late(server, is_complete=True)
            assert (missing.status, missing.code) == ("INVALID_ARGUMENT", "missing_message")
            monkeypatch.setattr("service.grpc.limits.RECEIVE_LIMIT_S", 0.1)
            late = asyncio.ensure_future(ask_late(server))
            await until(lambda: server.admission.num_requests == 1)
            assert (await ask_grpc(server, encode_image())).status == "OK", "after the late one"
            ended = await late
            assert (ended.status, ended.code) == ("DEADLINE_EXCEEDED", "slow_message")


@pytest.mark.parametrize("bound", ["RPCs", "bytes"])
async def test_rpcs_and_their_bytes_are_bounded_and_health_checks_are_answered(
    serving: Serving,
    encode_image: Encode,
    runtime: FakeRuntime,
    entered: Entered,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
) -> None:
    image = encode_image(size=(60, 60))
    size = len(message("embed", image).SerializeToString())
    limits: dict[str, Any] = {}
    if bound == "RPCs":
        monkeypatch.setattr("service.grpc.interceptor.MAX_RPCS", 1)
    else:
        limits = {f"max_{name}_bytes": size + 100 for name in ("image", "request", "body_memory")}
    async with serving(**limits) as server:
        with nothing_held_after(server):
            runtime.gate.clear()
            first = asyncio.ensure_future(ask_grpc(server, image))
            assert await entered()
            refused = await ask_grpc(server, image)
            code = "too_many_rpcs" if bound == "RPCs" else "body_memory_full"
            assert (refused.status, refused.code) == ("RESOURCE_EXHAUSTED", code)
            assert refused.headers["grpc-retry-pushback-ms"] == "1000"
            assert (await call_rpc(server, CHECK)).status == "OK"
            if bound == "RPCs":
                assert sample(server.metrics, "rejected_total", reason="rpcs") == 1
            else:
                assert (await call_rpc(server, LIST)).status == "OK"
                large = await call_rpc(server, EMBED, bytes(size + 101))
                assert (large.status, "larger than max" in large.text) == (refused.status, True)
            runtime.gate.set()
            assert (await first).status == "OK"
            assert (await ask_grpc(server, image)).status == "OK"


async def test_too_many_streams_are_refused_and_an_rpc_is_answered(
    serving: Serving, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.grpc.interceptor.MAX_STREAMS", 1)
    async with serving() as server, grpc_channel(server) as channel:
        stream = channel.stream_stream(f"{ENCODER}/Stream")(timeout=LIMIT_S)
        await until(lambda: server.admission.num_requests == 1)
        refused = await call_rpc(server, f"{ENCODER}/Stream", b"")
        assert (refused.status, refused.code) == ("RESOURCE_EXHAUSTED", "too_many_streams")
        assert (await ask_grpc(server, encode_image())).status == "OK"
        stream.cancel()
        await until(lambda: held(server) == (0, 0, 0))


async def test_an_rpc_that_is_not_served_is_counted_without_its_name(serving: Serving) -> None:
    async with serving() as server:
        with nothing_held_after(server):
            found = await call_rpc(server, "/made.Up/Name")
        assert (found.status, found.code) == ("UNIMPLEMENTED", "unknown_rpc")
        counted = {"protocol": "grpc", "method": "other", "code": "UNIMPLEMENTED"}
        assert sample(server.metrics, "requests_total", **counted) == 1
    async with serving(api_keys="the-key-of-this-test") as server:
        assert (await call_rpc(server, "/made.Up/Name")).status == "UNAUTHENTICATED"


async def test_compressed_messages_are_refused(serving: Serving) -> None:
    async with serving() as server, grpc_channel(server) as channel:
        for rpc in (EMBED, LIST, CHECK):
            asked = channel.unary_unary(rpc)(
                bytes(1_000_000), timeout=LIMIT_S, compression=grpc.Compression.Gzip
            )
            assert (await asked.code()).name == "UNIMPLEMENTED"
            assert "gzip" in await asked.details()


async def test_an_error_that_quotes_the_request_is_not_too_long_for_metadata(
    serving: Serving, encode_image: Encode
) -> None:
    images = message("embed", encode_image()).images
    async with serving() as server:
        for letter in ("x", "\u672c", "\U0001f436"):
            named = embed_pb2.EmbedImagesRequest(images=images, model=letter * 30_000)
            found = await call_rpc(server, EMBED, named.SerializeToString())
            assert (found.status, found.code) == ("NOT_FOUND", "model_not_found")
            classes = [segment_pb2.SegmentClass(name=letter * 2000)] * 2
            twice = segment_pb2.SegmentImagesRequest(images=images, classes=classes)
            found = await call_rpc(server, f"{ENCODER}/SegmentImages", twice.SerializeToString())
            assert (found.status, found.code) == ("INVALID_ARGUMENT", "invalid_field")


async def test_health_takes_small_messages_only(serving: Serving) -> None:
    async with serving() as server:
        for raw, status, words in (
            (bytes(5000), "INVALID_ARGUMENT", "At most 4096 bytes"),
            (b"\xff", "INVALID_ARGUMENT", "malformed"),
            (b"", "OK", ""),
        ):
            found = await call_rpc(server, CHECK, raw)
            assert (found.status, words in found.text) == (status, True)
        async with grpc_channel(server) as channel:
            call = channel.stream_stream(CHECK)(iter(()), timeout=LIMIT_S)
            assert (await call.code()).name == "INVALID_ARGUMENT"
