"""Connections are kept, and a stream whose server goes away goes on where another stands."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

import tipserve_client
from service.server import Server
from tipserve_client.generated import embed_pb2, stream_pb2, tensor_pb2
from tipserve_client.generated.encoder_service_pb2_grpc import (
    EncoderServiceServicer,
    add_EncoderServiceServicer_to_server,
)
from tipserve_client.grpc_wire import rpc_error

if TYPE_CHECKING:
    from tests.clients.python.conftest import Asking

Serving = Callable[..., AbstractAsyncContextManager[Server]]
Encode = Callable[..., bytes]
LIMIT_S = 20.0


class Relay:
    """Counts the connections that go through it to a server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.num_connections = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on until one side is done."""
        self.num_connections += 1
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def test_many_requests_go_over_one_connection(
    serving: Serving, encode_image: Encode, asking: "Asking"
) -> None:
    async with serving() as server:
        relay = Relay(server.ports[asking.protocol])
        listening = await asyncio.start_server(relay.connected, "127.0.0.1", 0)
        server.ports[asking.protocol] = listening.sockets[0].getsockname()[1]
        async with asking.client(server) as client:
            for seed in range(10):
                await client.embed_images(encode_image(seed=seed))
            await client.models()
        assert relay.num_connections == 1
        listening.close()


class Fickle(EncoderServiceServicer):
    """Answers so many requests of each stream, and then ends it or refuses one."""

    def __init__(self, *lives: tuple[int, str]) -> None:
        self._lives = iter(lives)
        self.seen: list[list[str]] = []

    async def Stream(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """As many answers as this stream lives."""
        left, ending = next(self._lives)
        seen: list[str] = []
        self.seen.append(seen)
        async for request in requests:
            seen.append(request.id)
            if left == 0 and ending == "drain":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "The server is draining.")
            if left == 0 and ending == "full":
                error = stream_pb2.StreamError(code=8, reason="body_memory_full", message="full")
                error.retry_delay.FromMilliseconds(1)
                yield stream_pb2.StreamResponse(id=request.id, error=error)
                continue
            left -= 1
            tensor = tensor_pb2.Tensor(shape=[1], data_type="DATA_TYPE_FLOAT32", data=b"\0\0\0\0")
            embedded = embed_pb2.EmbedImagesResponse(embeddings=[{"cls1": tensor}])
            yield stream_pb2.StreamResponse(id=request.id, embed_images=embedded)


@asynccontextmanager
async def standing_in(servicer: Fickle) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_EncoderServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"grpc://127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("ending", ["drain", "full"])
async def test_what_has_no_answer_is_sent_again_and_each_is_answered_once(
    is_async: bool, ending: str
) -> None:
    servicer = Fickle((3, ending), (0, ending), (5, ending), (1000, ending))
    retry = tipserve_client.Retry(first_pause_s=0.01)

    def images() -> Iterator[bytes]:
        yield from [b"image"] * 20

    async with standing_in(servicer) as url:
        if is_async:
            async with tipserve_client.AsyncClient(url, retry=retry) as client:
                found = [item.index async for item in client.stream_images(images(), window=6)]
        else:
            with tipserve_client.Client(url, retry=retry) as threaded:
                items = threaded.stream_images(images(), window=6)
                found = await asyncio.to_thread(lambda: [item.index for item in items])
    assert found == list(range(20))
    begins = [int(seen[0]) for seen in servicer.seen]
    assert len(begins) == 4
    assert begins == sorted(begins)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_slow_caller_loses_no_try(is_async: bool) -> None:
    servicer = Fickle((1, "drain"), (1, "drain"), *[(1000, "drain")] * 9)
    retry = tipserve_client.Retry(first_pause_s=0.001)
    now, found = 0.0, []

    def work(index: int) -> bool:
        nonlocal now
        found.append(index)
        now += 100
        return True

    async with standing_in(servicer) as url:
        if is_async:
            async with tipserve_client.AsyncClient(url, retry=retry) as client:
                client._clock = lambda: now
                async for item in client.stream_images([b"image"] * 4, window=2):
                    work(item.index)
        else:
            with tipserve_client.Client(url, retry=retry) as threaded:
                threaded._clock = lambda: now
                items = threaded.stream_images([b"image"] * 4, window=2)
                await asyncio.to_thread(lambda: all(work(item.index) for item in items))
    assert found == [0, 1, 2, 3]


async def test_a_server_that_never_recovers_ends_the_stream() -> None:
    servicer = Fickle(*[(0, "drain")] * 9)
    retry = tipserve_client.Retry(first_pause_s=0.001, max_attempts=4)
    async with (
        standing_in(servicer) as url,
        tipserve_client.AsyncClient(url, retry=retry) as client,
    ):
        with pytest.raises(tipserve_client.Unavailable):
            [item async for item in client.stream_images([b"image"])]
    assert len(servicer.seen) <= 4


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_that_is_not_there_is_unavailable(protocol: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and listening to nobody
        url = f"{protocol}://127.0.0.1:{taken.getsockname()[1]}"
        retry = tipserve_client.Retry(first_pause_s=0.001, max_attempts=2)
        with (
            tipserve_client.Client(url, retry=retry) as client,
            pytest.raises(tipserve_client.Unavailable),
        ):
            client.embed_images(b"image")


class Reset(grpc.RpcError):
    """What an RPC ends with where a proxy has reset it; seen behind HAProxy."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "Stream removed (RST_STREAM (Received RST_STREAM with error code 8))"


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE])
def test_a_stream_that_a_proxy_resets_is_begun_anew(code: grpc.StatusCode) -> None:
    error = rpc_error(Reset(code))
    assert isinstance(error, tipserve_client.Unavailable)
    assert error.is_retryable
    assert error.code == "stream_broken"
