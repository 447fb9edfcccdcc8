"""One question to a token endpoint: what of an answer is taken, and where none is asked for."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.proxy.backends import token_endpoint
from services.proxy.backends.token_endpoint import Answered, post
from services.proxy.backends.token_requests import TokenRefused, TokenRequest
from tests.fakes.certificates import Authority, server_context
from tests.fakes.names import resolving

ASKED = TokenRequest(b"grant_type=client_credentials", "Basic Z2F0ZTpzM2NyM3Q=")
AUTHORITY = Authority()
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Wire:
    """Answers each connection with the same bytes, and keeps what it was sent."""

    def __init__(self, answer: bytes, *, hangs: bool) -> None:
        self._answer = answer
        self._hangs = hangs
        self.port = 0
        self.heard: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heard.append(await reader.readuntil(ASKED.form))
            for start in range(0, len(self._answer), 4096):
                writer.write(self._answer[start : start + 4096])
                await writer.drain()
            if self._hangs:
                await reader.read()  # until the other side has had enough
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def wire(
    answer: bytes = OK, *, tls: ssl.SSLContext | None = None, hangs: bool = False
) -> AsyncIterator[Wire]:
    made = Wire(answer, hangs=hangs)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made


async def ask(url: str, *, private: bool = True, ca: str | None = None) -> Answered:
    tls = ssl.create_default_context(cadata=ca)
    return await post(url, ASKED, tls=tls, private=private)


async def refusal(url: str, **options: Any) -> str:
    with pytest.raises(TokenRefused) as refused:
        await ask(url, **options)
    return refused.value.why


TAKEN = {
    "whole": (OK, b"{}"),
    "in chunks": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        b"{}",
    ),
    "until its connection ends": (b"HTTP/1.0 200 OK\r\n\r\n{}", b"{}"),
    "after another that is none": (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, b"{}"),
    "as large as may be": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 65000\r\n\r\n" + b"x" * 65_000, b"x" * 65_000,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "body"), TAKEN.values(), ids=TAKEN)
async def test_an_answer_is_read(answer: bytes, body: bytes) -> None:
    async with wire(answer) as endpoint:
        answered = await ask(f"http://127.0.0.1:{endpoint.port}/token?a=b")

        assert (200, body) == (answered.status, bytes(answered.body))
        [heard] = endpoint.heard
        assert heard.startswith(b"POST /token?a=b HTTP/1.1\r\nhost: 127.0.0.1:")
        assert heard.endswith(b"\r\n\r\n" + ASKED.form)
        assert b"\r\nauthorization: Basic Z2F0ZTpzM2NyM3Q=\r\n" in heard


REFUSED = {
    "too large": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n" + b"x" * 70_000, "too_large",
    ),
    "a head without an end": (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, "too_large"),
    "cut off": (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "cut_off"),
    "nothing": (b"", "cut_off"),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.9\r\n", "not_http"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "why"), REFUSED.values(), ids=REFUSED)
async def test_what_is_no_answer_is_not(answer: bytes, why: str) -> None:
    async with wire(answer) as endpoint:
        assert why == await refusal(f"http://127.0.0.1:{endpoint.port}/")


async def test_a_redirect_is_an_answer_and_followed_nowhere() -> None:
    async with wire() as elsewhere:
        there = f"location: http://127.0.0.1:{elsewhere.port}/".encode()
        answer = b"HTTP/1.1 307 Go\r\n%s\r\ncontent-length: 0\r\n\r\n" % there
        async with wire(answer) as endpoint:
            answered = await ask(f"http://127.0.0.1:{endpoint.port}/")

        assert (307, []) == (answered.status, elsewhere.heard)


async def test_whoever_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_endpoint, "DEADLINE_S", 0.05)
    for answer in (b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"):
        async with wire(answer, hangs=True) as endpoint:
            assert "timeout" == await refusal(f"http://127.0.0.1:{endpoint.port}/")


async def test_nobody_there_is_said_to_be_that() -> None:
    assert "unreachable" == await refusal("http://127.0.0.1:1/")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
async def test_private_addresses_are_asked_only_where_they_may_be(host: str) -> None:
    async with wire() as endpoint:
        assert "address" == await refusal(f"http://{host}:{endpoint.port}/", private=False)
        assert [] == endpoint.heard


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[::ffff:a9fe:a9fe]", "0.0.0.0"])
async def test_metadata_addresses_are_never_asked(host: str) -> None:
    assert "address" == await refusal(f"http://{host}:8/")


async def test_a_name_is_resolved_once_and_all_of_its_addresses_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the look and the connection, a name cannot become another machine's."""
    found = resolving(monkeypatch, "auth.example")
    async with wire() as endpoint:
        url = f"http://auth.example:{endpoint.port}/"
        found.append(["127.0.0.1"])
        assert 200 == (await ask(url)).status
        assert b"\r\nhost: auth.example:" in endpoint.heard[0]

        found.append(["127.0.0.1", "169.254.169.254"])
        assert ("address", 1) == (await refusal(url), len(endpoint.heard))


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "127.1", "0177.0.0.1"])
async def test_a_spelling_of_an_address_is_looked_at_as_what_it_leads_to(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    resolving(monkeypatch, host).append(["127.0.0.1"])
    async with wire() as endpoint:
        assert "address" == await refusal(f"http://{host}:{endpoint.port}/", private=False)
        assert [] == endpoint.heard


async def test_an_endpoint_is_trusted_by_its_authority(tmp_path: Path) -> None:
    context = server_context(AUTHORITY.server(), tmp_path)
    async with wire(tls=context) as endpoint:
        url = f"https://127.0.0.1:{endpoint.port}/"
        assert 200 == (await ask(url, ca=AUTHORITY.pem)).status
        assert "tls" == await refusal(url, ca=Authority("other").pem)

        assert 1 == len(endpoint.heard)


async def test_a_certificate_for_another_address_is_nobodys(tmp_path: Path) -> None:
    context = server_context(AUTHORITY.server("127.0.0.9"), tmp_path)
    async with wire(tls=context) as endpoint:
        url = f"https://127.0.0.1:{endpoint.port}/"

        assert "tls" == await refusal(url, ca=AUTHORITY.pem)
        assert [] == endpoint.heard
