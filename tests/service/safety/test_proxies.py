"""A trusted proxy says who its callers are; other peers are not believed."""

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

import grpc
import pytest

from service.call import Call, flow_of
from service.monitoring.telemetry import Telemetry
from service.safety.proxies import TrustedProxies
from service.server import Server
from tests.service.callers import BOTH, LIMIT_S, Ask, call_rpc, grpc_channel
from tests.service.conftest import Encode, Serving, until

PROXIES = TrustedProxies(
    [ip_network("127.0.0.1"), ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
)
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"


@pytest.mark.parametrize(
    ("peer", "forwarded", "host"),
    [
        ("127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["1.1.1.1, 203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["1.1.1.1", "203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7, 10.1.2.3", "fd00::1"], "203.0.113.7"),
        ("127.0.0.1", ["not an address, 203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["2001:DB8::7"], "2001:db8::7"),
        ("127.0.0.1", ["[2001:db8::7]:443"], "2001:db8::7"),
        ("127.0.0.1", ["203.0.113.7:443"], "203.0.113.7"),
        ("127.0.0.1", ["10.0.0.9, 10.0.0.8"], "10.0.0.9"),
        ("::ffff:127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("203.0.113.8", ["203.0.113.7"], "203.0.113.8"),
        ("127.0.0.1", ["203.0.113.7, unknown"], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.7,"], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("", ["203.0.113.7"], ""),
    ],
)
def test_the_caller_is_the_last_address_that_is_no_trusted_proxy(
    peer: str, forwarded: list[str], host: str
) -> None:
    assert PROXIES.host_of(peer, forwarded) == host
    assert TrustedProxies().host_of(peer, forwarded) == peer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Calls that have ended, also of other servers in the process."""
    found: list[Call] = []
    end = Telemetry.end

    def record(telemetry: Telemetry, call: Call, *args: object, **named: bool) -> None:
        found.append(call)
        end(telemetry, call, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Telemetry, "end", record)
    return found


@BOTH
@pytest.mark.parametrize(
    ("trusted", "host"), [("127.0.0.0/8", "203.0.113.7"), ("10.0.0.0/8", "127.0.0.1")]
)
async def test_a_stranger_cannot_choose_his_host(
    serving: Serving,
    encode_image: Encode,
    calls: list[Call],
    ask: Ask,
    trusted: str,
    host: str,
) -> None:
    async with serving(trusted_proxies=trusted) as server:
        answer = await ask(
            server, encode_image(), headers={"x-forwarded-for": "1.1.1.1, 203.0.113.7"}
        )
        assert answer.status in {"200", "OK"}
        await until(lambda: bool(calls))
    protocol = "http" if ask.__name__ == "ask_rest" else "grpc"
    assert [(call.host, call.flow) for call in calls] == [(host, flow_of(protocol, host))]


async def listed(server: Server, headers: Mapping[str, str]) -> str | None:
    return (await call_rpc(server, "/tipserve.v1.EncoderService/ListModels", headers=headers)).code


@pytest.mark.parametrize(("trusted", "num_paces"), [("127.0.0.1", 3), ("", 1)])
async def test_refusals_of_callers_behind_a_proxy_are_paced_one_by_one(
    serving: Serving, trusted: str, num_paces: int
) -> None:
    async with serving(trusted_proxies=trusted, api_keys="a-key-of-our-own-0001") as server:
        for host in ("203.0.113.7", "203.0.113.8", "2001:db8::1", "203.0.113.7"):
            assert await listed(server, {"x-forwarded-for": host}) == "missing_api_key"
        assert server._grpc._guard._refusals.num_flows == num_paces


async def test_a_caller_behind_a_proxy_leaves_its_connection_to_others(serving: Serving) -> None:
    # The 17th open RPC of health on one connection is refused.
    async with serving(trusted_proxies="127.0.0.1") as server, grpc_channel(server) as channel:

        async def watch(host: str) -> str:
            rpc = channel.unary_stream(HEALTH_WATCH)
            opened = rpc(b"", timeout=LIMIT_S, metadata=(("x-forwarded-for", host),))
            watches.append(opened)
            try:
                await opened.read()
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        watches: list[Any] = []
        assert [await watch("203.0.113.7") for _ in range(17)] == [
            *["OK"] * 16,
            "RESOURCE_EXHAUSTED",
        ]
        assert await watch("203.0.113.8") == "OK"
        for one in watches:
            one.cancel()
