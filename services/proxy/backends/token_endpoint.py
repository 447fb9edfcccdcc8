"""One POST to a token endpoint: within 5 s, at most 64 KiB back, no redirects, nothing kept open.

Addresses are looked at before they are dialled, as those of tool servers are; the name is not
resolved a second time. What an answer means is token_requests.py's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import httptools

from services.proxy.backends.egress import forbidden
from services.proxy.backends.token_requests import TokenRefused, TokenRequest
from services.proxy.bridge import NAME, VERSION

DEADLINE_S: Final = 5.0
MAX_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class Answered:
    status: int = 0
    body: bytearray = field(default_factory=bytearray, repr=False)


async def post(url: str, request: TokenRequest, *, tls: ssl.SSLContext, private: bool) -> Answered:
    """Raises TokenRefused. `private`: whether private addresses may be reached."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await _exchange(url, request, tls, private=private)
    except TimeoutError:
        raise TokenRefused("timeout") from None
    except ssl.SSLError:
        raise TokenRefused("tls") from None
    except OSError:
        raise TokenRefused("unreachable") from None
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        raise TokenRefused("not_http") from None


async def _exchange(
    url: str, request: TokenRequest, tls: ssl.SSLContext, *, private: bool
) -> Answered:
    """1. addresses  2. all of them allowed  3. dial  4. ask  5. read up to the cap."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    addresses = await _resolved(host, port)  # 1
    if not addresses or any(forbidden(one, private=private) for one in addresses):  # 2
        raise TokenRefused("address")
    context = tls if parts.scheme == "https" else None
    reader, writer = await _dialled(addresses, port, host, context)  # 3
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        writer.write(_head(target, parts.netloc, request) + request.form)  # 4
        return await _answer(reader)  # 5
    finally:
        writer.transport.abort()


async def _resolved(host: str, port: int) -> list[str]:
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [str(one[4][0]) for one in found]


async def _dialled(
    addresses: list[str], port: int, host: str, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    failure: OSError = OSError()
    for address in addresses[:4]:
        try:
            return await asyncio.open_connection(
                address, port, ssl=context, server_hostname=host if context else None
            )
        except OSError as refused:
            failure = refused
    raise failure


def _head(target: str, netloc: str, request: TokenRequest) -> bytes:
    lines = [
        f"POST {target} HTTP/1.1",
        f"host: {netloc}",
        "accept: application/json",
        "accept-encoding: identity",
        "connection: close",
        "content-type: application/x-www-form-urlencoded",
        f"content-length: {len(request.form)}",
        f"user-agent: {NAME}/{VERSION}",
    ]
    if request.authorization:
        lines.append(f"authorization: {request.authorization}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Reading:
    """llhttp's callbacks."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.answered = Answered()
        self.complete = False
        #: Whether the body's end is told by something else than the connection's.
        self.counted = False

    def on_header(self, name: bytes, _: bytes) -> None:
        self.counted |= name.lower() in {b"content-length", b"transfer-encoding"}

    def on_headers_complete(self) -> None:
        self.answered.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.answered.body += body

    def on_message_complete(self) -> None:
        self.complete = self.answered.status >= 200
        if not self.complete:
            self.counted = False


async def _answer(reader: asyncio.StreamReader) -> Answered:
    reading = _Reading()
    left = MAX_BYTES
    while not reading.complete:
        chunk = await reader.read(min(left, 16 * 1024))
        if chunk:
            reading.parser.feed_data(chunk)
            left -= len(chunk)
            if left <= 0 and not reading.complete:
                raise TokenRefused("too_large")
        elif reading.answered.status >= 200 and not reading.counted:
            break  # a body that ends with its connection
        else:
            raise TokenRefused("cut_off")
    return reading.answered
