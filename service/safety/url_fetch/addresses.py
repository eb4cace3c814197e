"""Which addresses of the Internet are public: all others may be someone's inside.

Names are allowed, but addresses are dialled: whoever answers for a name's DNS chooses what it
means, and may choose the metadata server of a cloud or a neighbour of this process.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Final

# Public by number, or held to be by older Pythons, and yet no hosts to fetch from.
REFUSED_V4: Final = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments; some clouds' own services
    IPv4Network("168.63.129.16/32"),  # Azure's own services inside every virtual machine
    IPv4Network("192.88.99.0/24"),  # relays from IPv4 to IPv6, withdrawn by RFC 7526
)
# All that is assigned for hosts. Outside lie loopback, link-local, unique local, IPv4-mapped
# (::ffff:0:0/96), IPv4-compatible (::/96) and NAT64 addresses (64:ff9b::/96, 64:ff9b:1::/48).
GLOBAL_V6: Final = IPv6Network("2000::/3")
REFUSED_V6: Final = (
    IPv6Network("2001::/23"),  # protocol assignments; Teredo's relays to IPv4 addresses
    IPv6Network("2002::/16"),  # 6to4: relays to IPv4 addresses
    IPv6Network("3fff::/20"),  # documentation
)


def is_public(text: str) -> bool:
    """Whether a numeric address is one that everybody may reach."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in REFUSED_V4)
    return address in GLOBAL_V6 and not any(address in network for network in REFUSED_V6)
