"""A trusted proxy says who its callers are; other peers are not believed."""

from ipaddress import ip_network

import pytest

from service.safety.proxies import TrustedProxies

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
