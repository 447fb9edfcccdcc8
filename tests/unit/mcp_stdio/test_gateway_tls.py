"""Whom the program believes to be the gateway."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.mcp_stdio.gateway import UNTRUSTED
from tests.fakes.certificates import Authority
from tests.fakes.scripted_gateway import ScriptedGateway, scripted
from tests.unit.mcp_stdio.conftest import relaying

AUTHORITY = Authority()


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*AUTHORITY.server("127.0.0.1").written(tmp_path, "server"))
    async with scripted(tls) as running:
        yield running


@pytest.mark.parametrize("known", [True, False])
async def test_a_gateway_is_believed_by_the_authority_that_is_named(
    guarded: ScriptedGateway, tmp_path: Path, known: bool
) -> None:
    named = tmp_path / "ca.pem"
    named.write_text((AUTHORITY if known else Authority()).pem)
    async with relaying(guarded, ca=named) as client:
        client.modern("tools/list", id=1)
        answer = await client.hear()

    if known:
        assert {"tools": []} == answer["result"]
    else:
        assert 5020 == answer["error"]["code"]
        assert [UNTRUSTED] == client.words
        assert [] == guarded.asked
