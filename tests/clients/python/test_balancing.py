"""One name for several replicas, as a headless Service of Kubernetes has it: all get requests.

The name is answered by a resolver of the test, in the place of the cluster's.
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from service.server import Server
from tests.clients.python.conftest import InThreads
from tipserve_client import AsyncClient, Client
from tipserve_client.connection import Target

Serving = Callable[..., AbstractAsyncContextManager[Server]]
NAME = "tipserve-headless.default.svc"
LIMIT_S = 60.0
TYPE_A = 1


class Resolver:
    """Answers every question for a name's IPv4 addresses with `addresses`, over UDP."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            question, peer = self._socket.recvfrom(512)
            if not question:
                return
            self._socket.sendto(self._answer(question), peer)

    def _answer(self, question: bytes) -> bytes:
        """RFC 1035, 4.1: the header with counts, the question again, a record for each address."""
        end = question.index(b"\0", 12) + 5
        asked = int.from_bytes(question[end - 4 : end - 2], "big")
        addresses = self.addresses if asked == TYPE_A else []
        record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4"
        answer = question[:2] + b"\x85\x80\0\1" + len(addresses).to_bytes(2, "big") + bytes(4)
        records = [record + socket.inet_aton(address) for address in addresses]
        return answer + question[12:end] + b"".join(records)

    def close(self) -> None:
        """An empty datagram ends it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(LIMIT_S)
        self._socket.close()


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    """Asked by every client for the name in its URL."""
    running = Resolver()
    through = property(lambda target: f"dns://127.0.0.1:{running.port}/{target.host}:{target.port}")
    monkeypatch.setattr(Target, "address", through)
    yield running
    running.close()


def num_answered(server: Server) -> float:
    """Requests that this replica has answered."""
    families = server.metrics.registry.collect()
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "tipserve_requests_total"
    )


@asynccontextmanager
async def connected(url: str, is_async: bool) -> AsyncIterator[Any]:
    """Either client, with methods that are awaited."""
    if is_async:
        async with AsyncClient(url) as client:
            yield client
    else:
        with Client(url) as threaded:
            yield InThreads(threaded)


@pytest.mark.parametrize("is_async", [False, True])
async def test_all_replicas_behind_a_name_get_requests(
    serving: Serving, resolver: Resolver, is_async: bool
) -> None:
    async with (
        serving(host="127.0.0.1") as one,
        serving(host="127.0.0.2", grpc_port=one.ports["grpc"]) as other,
    ):
        resolver.addresses = ["127.0.0.1", "127.0.0.2"]
        url = f"grpc://{NAME}:{one.ports['grpc']}"
        async with connected(url, is_async) as client:
            # One connection may take a moment longer than the other.
            async with asyncio.timeout(LIMIT_S):
                while not (num_answered(one) and num_answered(other)):
                    await client.embed_texts(["a dog"])
            before = [num_answered(one), num_answered(other)]
            for _ in range(40):
                await client.embed_texts(["a dog"])
        shares = [num_answered(one) - before[0], num_answered(other) - before[1]]
    assert sum(shares) == 40
    assert min(shares) >= 10


async def test_replicas_of_a_name_are_replaced_and_no_request_fails(
    serving: Serving, resolver: Resolver
) -> None:
    is_over = asyncio.Event()

    async def ask_on(client: AsyncClient) -> None:
        while not is_over.is_set():
            await client.embed_texts(["a dog"])

    async def stand_in(number: int, port: int = 0) -> tuple[AsyncExitStack, Server]:
        stack = AsyncExitStack()
        server = await stack.enter_async_context(serving(host=f"127.0.0.{number}", grpc_port=port))
        resolver.addresses = [f"127.0.0.{number}"]
        return stack, server

    stack, server = await stand_in(1)
    port = server.ports["grpc"]
    async with AsyncClient(f"grpc://{NAME}:{port}") as client:
        asking = asyncio.ensure_future(ask_on(client))
        for number in range(2, 6):
            await until_asked(server, asking)
            old = stack
            stack, server = await stand_in(number, port)
            # It drains, and the name has the new one only.
            await old.aclose()
        await until_asked(server, asking)
        is_over.set()
        await asking
    await stack.aclose()


async def until_asked(server: Server, asking: "asyncio.Future[None]") -> None:
    """Wait until this replica has answered some requests; what went wrong with one is raised."""
    async with asyncio.timeout(LIMIT_S):
        while num_answered(server) < 20:
            assert not asking.done(), asking.exception()
            await asyncio.sleep(0.01)
