"""Others have us reach the public Internet and nothing else, however an address is written."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_api.network.addresses import is_permitted, meant, networks

INSIDE = [
    ip_network(name)
    for name in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/96", "64:ff9b:1::/48", "100::/64", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
        *("2001:db8::/32", "2002::/16", "2001::/32", "3fff::/20", "5f00::/16"),
    )
]


@st.composite
def inside(draw: st.DrawFn) -> IPv4Address | IPv6Address:
    network = draw(st.sampled_from(INSIDE))
    offset = draw(st.integers(0, network.num_addresses - 1))
    return network[offset]


@given(inside())
def test_nothing_inside_is_reached(address: IPv4Address | IPv6Address) -> None:
    assert not is_permitted(address)
    if isinstance(address, IPv4Address):
        for prefix in ("::ffff:0:0", "64:ff9b::"):
            assert not is_permitted(IPv6Address(int(IPv6Address(prefix)) + int(address)))


@given(st.ip_addresses())
def test_what_is_permitted_is_global_by_the_standard_library_too(
    address: IPv4Address | IPv6Address,
) -> None:
    if is_permitted(address):
        reached = meant(address)
        assert reached.is_global
        for inward in ("multicast", "loopback", "link_local", "reserved", "unspecified", "private"):
            assert not getattr(reached, f"is_{inward}")


@given(st.ip_addresses(v=4))
def test_ipv4_inside_ipv6_is_judged_as_what_it_reaches(address: IPv4Address) -> None:
    assert isinstance(address, IPv4Address)
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        carried = IPv6Address(int(IPv6Address(prefix)) + int(address))
        assert is_permitted(carried) == is_permitted(address)


@pytest.mark.parametrize(
    "metadata",
    [
        "169.254.169.254",
        "fd00:ec2::254",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "::ffff:a9fe:a9fe",
    ],
)
def test_no_cloud_tells_its_metadata(metadata: str) -> None:
    assert not is_permitted(ip_address(metadata))


@pytest.mark.parametrize(
    "public", ["1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700::1111", "64:ff9b::808:808"]
)
def test_the_public_internet_is_reached(public: str) -> None:
    assert is_permitted(ip_address(public))


def test_the_operator_may_allow_a_network_and_only_that_opens() -> None:
    allowed = networks(["10.1.0.0/16", "fd12::/16"])
    assert allowed == (IPv4Network("10.1.0.0/16"), IPv6Network("fd12::/16"))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1"):
        assert is_permitted(ip_address(address), allowed)
    for address in ("10.2.0.1", "127.0.0.1", "fd13::1", "::1"):
        assert not is_permitted(ip_address(address), allowed)


def test_an_address_with_a_zone_belongs_to_one_link() -> None:
    assert not is_permitted(IPv6Address("2606:4700::1111%eth0"))
