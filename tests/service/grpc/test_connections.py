"""Idle connections beyond the limit are closed; those with RPCs are not."""

import asyncio
import socket
from collections.abc import Collection
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

import grpc
import pytest

from service.grpc import connections
from service.grpc.connections import (
    UNREAD_S,
    Connection,
    OpenRpcs,
    close_idle,
    closing_connections,
    longest_idle,
    open_connections,
    parse_peer,
)
from service.grpc.generated import embed_pb2, encoder_service_pb2, image_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.monitoring.metrics import Metrics
from service.server import Server
from tests.hostile.wire import PREFACE, SETTINGS, frame
from tests.service.conftest import Encode, Entered, FakeRuntime, Serving, sample, until

LIMIT_S = 20.0
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


def num_closed(server: Server) -> float:
    assert sample(server.metrics, "rejected_total", reason="connections") == 0
    return sample(server.metrics, "idle_connections_closed_total", protocol="grpc")


def idle(host: str, *idle_ms: int) -> list[Connection]:
    return [Connection(0, (ip_address(host), ms), ms) for ms in idle_ms]


def test_the_longest_idle_connections_of_the_hosts_with_most_are_chosen() -> None:
    found = [*idle("10.0.0.1", 900), *idle("10.0.0.2", 10, 30, 20), *idle("::1", 40, 50)]
    chosen = longest_idle(found, set(), 3)
    assert [one.idle_ms for one in chosen] == [30, 50, 20]
    exempt = {(ip_address("10.0.0.2"), ms) for ms in (10, 20, 30)}
    assert [one.idle_ms for one in longest_idle(found, exempt, 6)] == [50, 900, 40]
    assert longest_idle(found, set(), -1) == []


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.7:50000", "10.0.0.7"),
        ("ipv6:%5B::1%5D:50000", "::1"),
        ("ipv6:[::1]:50000", "::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", "fe80::1"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:50000", "10.0.0.7"),
    ],
)
def test_names_of_clients_are_parsed(peer: str, host: str) -> None:
    assert parse_peer(peer) == (ip_address(host), 50_000)


def test_a_connection_that_was_shut_down_is_not_closed_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        # As gRPC's core does, these keep the descriptors open for a while.
        accepted = [listener.accept()[0] for _ in clients]
        with ExitStack() as stack:
            for sock in (*clients, *accepted):
                stack.enter_context(sock)
            assert close_idle(port, 1, ()) == (1, 1)
            assert len(open_connections(port)) == 1
            assert close_idle(port, 1, ()) == (1, 0)


def test_a_connection_is_closed_for_an_unread_answer_but_not_while_others_use_it() -> None:
    rpcs, proxy, direct = OpenRpcs(), "ipv4:127.0.0.1:1", "ipv4:10.0.0.7:2"
    rpcs.enter(proxy, "10.0.0.1")
    rpcs.enter(proxy, "10.0.0.2")
    rpcs.enter(direct, "10.0.0.7")
    for peer, host in ((proxy, "10.0.0.1"), (direct, "10.0.0.7")):
        rpcs.give_up(peer, host, 50.0)
    assert rpcs.take_unread(50.1) == set()
    assert rpcs.take_unread(50.1 + UNREAD_S) == {direct}
    assert rpcs.take_unread(1000.0) == set(), "another caller has an RPC on the connection"
    rpcs.leave(proxy, "10.0.0.1")
    assert (rpcs.take_unread(1000.0), rpcs.busy_peers()) == (set(), {proxy, direct})
    rpcs.leave(proxy, "10.0.0.2")
    assert (rpcs.take_unread(1000.0), rpcs.busy_peers()) == ({proxy}, {direct})
    assert (rpcs.take_unread(1000.0), rpcs.num_unread) == (set(), 0)


async def test_descriptors_are_looked_at_only_if_enough_were_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_descriptors, looks = 12, []

    def look(port: int, max_connections: int, busy: Collection[str]) -> tuple[int, int]:
        looks.append(num_descriptors)
        return 7, 0

    monkeypatch.setattr(connections, "CHECK_S", 0.0)
    monkeypatch.setattr(connections, "RECOUNT_S", 1e9)
    monkeypatch.setattr(connections, "num_descriptors", lambda: num_descriptors)
    monkeypatch.setattr(connections, "close_idle", look)
    async with closing_connections(1, 10, rpcs=OpenRpcs(), metrics=Metrics()):
        await until(lambda: bool(looks))
        for num_descriptors in (12, 15, 16):  # noqa: B007 - read by the functions above
            for _ in range(20):
                await asyncio.sleep(0.001)
        assert looks == [12, 16], "3 more connections are allowed"
        monkeypatch.setattr(connections, "RECOUNT_S", 0.0)
        await until(lambda: len(looks) > 2)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
async def test_idle_connections_make_room_for_others(
    serving: Serving, runtime: FakeRuntime, entered: Entered, encode_image: Encode, host: str
) -> None:
    limit, num_idle = 3, 5
    address = "::1" if host == "::1" else "127.0.0.1"
    request = embed_pb2.EmbedImagesRequest(images=[image_pb2.Image(encoded=encode_image())])
    async with serving(host=host, max_connections=limit) as server:
        port = server.ports["grpc"]
        target = f"[::1]:{port}" if host == "::1" else f"{address}:{port}"
        async with grpc.aio.insecure_channel(target) as channel:
            runtime.gate.clear()
            answer = EncoderServiceStub(channel).EmbedImages(request, timeout=LIMIT_S)
            assert await entered()
            with ExitStack() as stack:
                for _ in range(num_idle):
                    peer = stack.enter_context(socket.create_connection((address, port)))
                    peer.sendall(PREFACE + frame(SETTINGS))
                await until(lambda: num_closed(server) == 1 + num_idle - limit)
                assert len(open_connections(port)) <= limit
                async with grpc.aio.insecure_channel(target, OWN_CONNECTION) as newcomer:
                    asked = encoder_service_pb2.ListModelsRequest()
                    await EncoderServiceStub(newcomer).ListModels(asked, timeout=LIMIT_S)
                    await until(lambda: num_closed(server) == 2 + num_idle - limit)
            runtime.gate.set()
            assert (await answer).embeddings


async def test_a_health_watch_does_not_keep_a_connection(serving: Serving) -> None:
    # It needs no key.
    async with serving(max_connections=1) as server:
        port = server.ports["grpc"]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            rpc: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
            watch = rpc(b"", timeout=LIMIT_S)
            await watch.read()
            await asyncio.sleep(0.01)  # idle for longer than the next connection
            with socket.create_connection(("127.0.0.1", port)) as peer:
                peer.sendall(PREFACE + frame(SETTINGS))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await watch.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
