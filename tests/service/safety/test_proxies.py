"""A trusted proxy says who its callers are; other peers are not believed."""

from ipaddress import ip_network

import pytest

from service.call import Call, caller_of
from service.monitoring.telemetry import Telemetry
from service.safety.proxies import TrustedProxies
from tests.service.callers import BOTH, Ask
from tests.service.conftest import Encode, Serving, until

PROXIES = TrustedProxies(
    [ip_network("127.0.0.1"), ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
)


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
    assert [(call.host, call.caller) for call in calls] == [(host, caller_of(protocol, host))]
