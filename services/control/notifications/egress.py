"""Which addresses a notice may be sent to. Looked at when a connection is made, on the address that
is used, so that a name cannot be turned to another one in between.

The machine's own metadata and its link are nobody's destination. What else may be reached is the
network's to say.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Final

from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Metadata services outside the link-local range.
_METADATA: Final = frozenset(
    ipaddress.ip_address(text)
    for text in ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254")
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class AddressRefused(OSError):
    """An address that no notice goes to."""


class GuardedResolver(ThreadedResolver):
    """Resolves names for HTTP requests. Raises AddressRefused."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        for one in found:
            check(one["host"])
        return found


def check(address: str) -> None:
    """Raises AddressRefused; a text that is no address is not this function's to judge."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return
    if is_refused(parsed):
        raise AddressRefused("no notice goes there")


def is_refused(address: _Address) -> bool:
    inner = _inner(address)
    if inner is not None:
        return is_refused(inner)
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address in _METADATA
        or address == ipaddress.IPv4Address("255.255.255.255")
    )


async def connect(host: str, port: int) -> socket.socket:
    """A connected socket to one of the host's addresses. Raises AddressRefused and OSError."""
    check(host)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, where in found:
        check(str(where[0]))
    failure: OSError = OSError("no address")
    for family, kind, protocol, _, where in found:
        connection = socket.socket(family, kind, protocol)
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, where)
        except OSError as refused:
            connection.close()
            failure = refused
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure


def _inner(address: _Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside an IPv6 one."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
