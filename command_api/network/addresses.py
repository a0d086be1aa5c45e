"""Which network addresses others may have us talk to: those of the public Internet, and no others."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_V4_REFUSED = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers; some clouds' metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # a public address by which a cloud reaches its own machines only
        "169.254.0.0/16",  # link-local, and most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # relays to IPv6
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
"""IANA's special-purpose registry for IPv4, but for what is plain unicast."""

_V6_GLOBAL = IPv6Network("2000::/3")
"""All that has been given out for global unicast."""
_V6_REFUSED = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocols, Teredo among them
        "2001:db8::/32",
        "2002::/16",  # 6to4: carries any IPv4 address
        "3fff::/20",
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
"""The well-known prefix (RFC 6052); its local-use sister is refused with everything else outside 2000::/3."""


def networks(named: Sequence[str]) -> tuple[Network, ...]:
    """Settings' networks as such."""
    return tuple(ip_network(name) for name in named)


def meant(address: Address) -> Address:
    """The address that a packet would reach: IPv4 may be written inside IPv6."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def is_among(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether the operator allowed the address's network."""
    reached = meant(address)
    return any(reached in network or address in network for network in allowed)


def is_permitted(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Whether to connect: to the public Internet, or to a network that the operator allowed."""
    reached = meant(address)
    if is_among(address, allowed):
        return True
    if isinstance(reached, IPv4Address):
        return not any(reached in network for network in _V4_REFUSED)
    if reached.scope_id is not None:
        return False
    return reached in _V6_GLOBAL and not any(reached in network for network in _V6_REFUSED)
