"""Addresses that may not be reached, however they are spelled."""

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.backends.egress import forbidden

NEVER = ("169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "0.0.0.0/8", "100.100.100.200/32",
         "168.63.129.16/32")  # fmt: skip
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "100.64.0.0/10")
PRIVATE_V6 = ("fc00::/7", "::1/128", "fec0::/10", "2001:db8::/32", "100::/64", "5f00::/16")
NEVER_V6 = ("fe80::/10", "ff00::/8", "fd00:ec2::254/128", "::/128")
PUBLIC = ("1.0.0.0/8", "8.8.8.0/24", "93.184.216.0/24", "172.32.0.0/11", "192.169.0.0/16",
          "100.128.0.0/9", "203.0.112.0/24")  # fmt: skip
PUBLIC_V6 = ("2606:4700::/32", "2a00::/16", "2001:4860::/32")


def inside(*networks: str) -> st.SearchStrategy[int]:
    ranges = [ipaddress.ip_network(one) for one in networks]
    return st.one_of(
        *(st.integers(int(one.network_address), int(one.broadcast_address)) for one in ranges)
    )


def v4(*networks: str) -> st.SearchStrategy[ipaddress.IPv4Address]:
    return inside(*networks).map(ipaddress.IPv4Address)


#: Ways in which an IPv6 address carries an IPv4 one.
CARRIED: dict[str, Callable[[int], int]] = {
    "mapped": lambda four: (0xFFFF << 32) | four,
    "compatible": lambda four: four,
    "translated": lambda four: (0x64FF9B << 96) | four,
    "translated here": lambda four: (0x64FF9B0001 << 80) | four,
    "translated as before": lambda four: (0xFFFF << 48) | four,
    "6to4": lambda four: (0x2002 << 112) | (four << 80) | 1,
    "teredo client": lambda four: (0x20010000 << 96) | (0x08080808 << 64) | (four ^ 0xFFFFFFFF),
    "teredo server": lambda four: (0x20010000 << 96) | (four << 64) | (0x08080808 ^ 0xFFFFFFFF),
}


def spellings(number: int) -> list[str]:
    six = ipaddress.IPv6Address(number)
    return [str(six), six.exploded, six.exploded.upper(), f"{six}%eth0", f"{six}%1"]


def carried(four: ipaddress.IPv4Address) -> list[str]:
    found = [str(four), f"::ffff:{four}", f"::FFFF:{four}%lo"]
    numbers = [carry(int(four)) for carry in CARRIED.values()]
    # `::1` is this machine, and no spelling of 0.0.0.1.
    return found + [text for number in numbers if number != 1 for text in spellings(number)]


@given(v4(*NEVER), st.booleans())
def test_what_is_nobodys_is_refused_in_every_spelling(
    four: ipaddress.IPv4Address, private: bool
) -> None:
    for text in carried(four):
        assert forbidden(text, private=private), text


@given(v4(*PRIVATE).filter(lambda four: str(four) != "100.100.100.200"))
def test_private_addresses_are_the_planes_to_allow(four: ipaddress.IPv4Address) -> None:
    for text in carried(four):
        assert forbidden(text, private=False), text
        assert not forbidden(text, private=True), text


@given(v4(*PUBLIC), st.booleans())
def test_public_addresses_are_reached(four: ipaddress.IPv4Address, private: bool) -> None:
    for text in carried(four):
        assert not forbidden(text, private=private), text


@given(inside(*NEVER_V6), st.booleans())
def test_a_link_is_refused_in_every_spelling(six: int, private: bool) -> None:
    for text in spellings(six):
        assert forbidden(text, private=private), text


@given(inside(*PRIVATE_V6).filter(lambda six: six != int(ipaddress.ip_address("fd00:ec2::254"))))
def test_private_networks_of_ipv6_too(six: int) -> None:
    for text in spellings(six):
        assert forbidden(text, private=False), text


@given(inside("fc00::/8", "::1/128", "fec0::/10"))
def test_and_they_may_be_allowed(six: int) -> None:
    for text in spellings(six):
        assert not forbidden(text, private=True), text


@given(inside(*PUBLIC_V6), st.booleans())
def test_public_addresses_of_ipv6_are_reached(six: int, private: bool) -> None:
    for text in spellings(six):
        assert not forbidden(text, private=private), text


@given(st.integers(0, 2**128 - 1))
def test_what_private_refuses_is_more_never_less(six: int) -> None:
    text = str(ipaddress.IPv6Address(six))

    assert forbidden(text, private=False) or not forbidden(text, private=True)


@pytest.mark.parametrize(
    "text", ["", "localhost", "0x7f.1", "0177.0.0.1", "127.1", "2130706433", "1.2.3.4.5", "[::1]",
             "\uff11\uff12\uff17.0.0.1", "127.0.0.1\n", " 127.0.0.1", "::ffff:7f.0.0.1"]
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    assert forbidden(text, private=True)
