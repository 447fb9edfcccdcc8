"""Which addresses may be reached from here. Pure: asked about each address right before it is
dialled, so that a name cannot be turned to another one in between.

Some are never a tool server's (mcp.md 10.2): link-local and metadata addresses, groups, nobody's.
Private ones are the plane's to allow: where tool servers of strangers are reached, they are not.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

_V4 = ipaddress.IPv4Address
_V6 = ipaddress.IPv6Address

#: Metadata services, and what a cloud keeps beside them, outside the link-local ranges.
METADATA: Final = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254",
    )
)  # fmt: skip
_NEVER: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
        "::/128", "fe80::/10", "ff00::/8",
    )
)  # fmt: skip
_PRIVATE_V4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    )
)  # fmt: skip
#: Everything public is in it; what is special within it follows.
_GLOBAL_V6: Final = ipaddress.IPv6Network("2000::/3")
_SPECIAL_V6: Final = (ipaddress.IPv6Network("2001::/23"), ipaddress.IPv6Network("2001:db8::/32"))
#: Prefixes before an IPv4 address that the network takes out again.
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_TRANSLATED: Final = (
    ipaddress.IPv6Network("64:ff9b::/96"),
    ipaddress.IPv6Network("64:ff9b:1::/48"),
    ipaddress.IPv6Network("::ffff:0:0:0/96"),
    ipaddress.IPv6Network("::/96"),
)
_SIX_TO_FOUR: Final = ipaddress.IPv6Network("2002::/16")
_TEREDO: Final = ipaddress.IPv6Network("2001::/32")


def forbidden(address: str, *, private: bool) -> bool:
    """`private`: whether private addresses, this machine's own among them, may be reached. What is
    no address is forbidden.
    """
    try:
        number = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True
    if isinstance(number, _V4):
        return _refused(number, private=private)
    if number in _MAPPED:
        return _refused(_V4(int(number) & 0xFFFFFFFF), private=private)
    if _refused(number, private=private):
        return True
    return any(_refused(inner, private=private) for inner in _inside(number))


def _refused(number: _V4 | _V6, *, private: bool) -> bool:
    if number in METADATA or any(number in network for network in _NEVER):
        return True
    return not private and _is_private(number)


def _is_private(number: _V4 | _V6) -> bool:
    if isinstance(number, _V4):
        return any(number in network for network in _PRIVATE_V4)
    if any(number in network for network in _TRANSLATED):
        return number == _V6("::1")  # what is inside says the rest
    if number in _TEREDO:
        return False
    return number not in _GLOBAL_V6 or any(number in network for network in _SPECIAL_V6)


def _inside(number: _V6) -> Iterator[_V4]:
    """The IPv4 addresses that an IPv6 one may lead to."""
    whole = int(number)
    if any(number in network for network in _TRANSLATED) and number != _V6("::1"):
        yield _V4(whole & 0xFFFFFFFF)
    if number in _SIX_TO_FOUR:
        yield _V4((whole >> 80) & 0xFFFFFFFF)
    if number in _TEREDO:
        yield _V4((whole & 0xFFFFFFFF) ^ 0xFFFFFFFF)
        yield _V4((whole >> 64) & 0xFFFFFFFF)
