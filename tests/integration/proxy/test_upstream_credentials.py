"""The proxy proves itself to real tool servers with what a real token endpoint gives it, or with a
certificate; and what it will not do for them.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.fakes.certificates import Authority, server_context
from tests.fakes.gateway import Gateway, gateway, http_server, modern_request, until_true
from tests.fakes.issuers import (
    EXCHANGE,
    JWT_BEARER,
    GuardedTools,
    TokenServer,
    guarded_tools,
    token_server,
)
from tests.fakes.names import resolving

AUTHORITY = Authority()
OTHER_AUTHORITY = Authority("somebody else")
SERVER = AUTHORITY.server()


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    return server_context(SERVER, tmp_path)


def credential(
    tokens: TokenServer, kind: str = "client_credentials", **more: Any
) -> dict[str, Any]:
    ways: dict[str, dict[str, Any]] = {
        "client_credentials": {
            "client_id": tokens.client_id, "client_secret": "secret://gate", "scope": "tools",
        },
        "jwt_bearer": {"key": "secret://key", "issuer": "behavry", "subject": "robot"},
        "token_exchange": {"key": "secret://key", "issuer": "behavry", "audience": "tools"},
    }  # fmt: skip
    return {"kind": kind, "token_url": tokens.url, **ways[kind], **more}


def write_secrets(state_dir: Path, tokens: TokenServer | None = None, **more: str) -> None:
    directory = state_dir / "secrets"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if tokens is not None:
        more = {
            "gate": tokens.client_secret,
            "key": tokens.key.as_pem(private=True).decode(),
            **more,
        }
    for name, text in more.items():
        (directory / name).write_text(text)


@asynccontextmanager
async def proxied(
    tmp_path: Path,
    tools: GuardedTools,
    tokens: TokenServer | None = None,
    *,
    secrets: dict[str, str] | None = None,
    settings: dict[str, str] | None = None,
    **entry: Any,
) -> AsyncIterator[Gateway]:
    """A proxy before `tools`, whose entry says that."""
    state = tmp_path / "state"
    write_secrets(state, tokens, **{"ca": AUTHORITY.pem, **(secrets or {})})
    async with gateway(
        state, {"notes": http_server(tools.url, **entry)}, **(settings or {})
    ) as made:
        yield made


async def called(proxy: Gateway, **options: Any) -> tuple[str, str]:
    """(verdict or reason, what the tool said). Nobody is ever asked to sign in elsewhere."""
    await proxy.offered("notes", "read_note")
    body, headers = modern_request("tools/call", {"name": "read_note", "arguments": {}}, {}, {})
    async with proxy.sending(body, headers=headers, **options) as response:
        content = await response.read()
    assert 200 == response.status
    assert "elsewhere" not in f"{response.headers} {content.decode()}"
    result = orjson.loads(content)["result"]
    if not result.get("isError"):
        return "allow", result["content"][0]["text"]
    return result["_meta"]["com.behavry/decision"]["reason"], ""


KINDS = {
    "client_credentials": ("gate", "client_credentials"),
    "jwt_bearer": ("robot", JWT_BEARER),
    "token_exchange": ("", EXCHANGE),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_token_opens_the_server_and_the_agents_own_stays_here(
    tmp_path: Path, tls: ssl.SSLContext, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        token_server(tls=tls) as tokens,
        guarded_tools(tokens, tls=tls) as tools,
        proxied(
            tmp_path, tools, tokens, ca="secret://ca",
            credential=credential(tokens, kind, token_ca="secret://ca"),
        ) as proxy,
    ):  # fmt: skip
        agents_token = proxy.issuer.token()
        verdict, text = await called(proxy, token=agents_token)
        await called(proxy)

        subject, grant = KINDS[kind]
        subject = subject or proxy.agent
        assert ("allow", f"for {subject}") == (verdict, text)
        assert [grant] == [form["grant_type"] for form in tokens.forms]
        heard = bytes(tools.heard + tokens.heard)
        written = b"".join(entry.body for entry in proxy.entries())
    logged = capsys.readouterr().out
    for secret in (agents_token, tokens.client_secret, *tokens.valid):
        assert secret.encode() not in written
        assert secret not in logged
    assert agents_token.encode() not in heard
    assert tokens.client_secret.encode() not in tools.heard
    assert b"eyJ" not in tools.heard  # nor what was signed for the endpoint


async def test_each_agent_has_a_token_of_its_own_by_exchange(tmp_path: Path) -> None:
    async with (
        token_server() as tokens,
        guarded_tools(tokens) as tools,
        proxied(tmp_path, tools, tokens, credential=credential(tokens, "token_exchange")) as proxy,
    ):
        other = "0199d0d0-0000-7000-8000-00000000aaaa"
        agents = proxy.authorizer.snapshot["tenants"][proxy.tenant]["agents"]
        agents[other] = {**agents[proxy.agent], "name": "second"}
        said = [
            await called(proxy),
            await called(proxy, token=proxy.issuer.token(sub=other)),
            await called(proxy),
        ]

        assert [("allow", f"for {who}") for who in (proxy.agent, other, proxy.agent)] == said
        assert 2 == len(tokens.forms)


async def test_a_token_is_renewed_before_its_end(tmp_path: Path) -> None:
    async with (
        token_server(life_s=1) as tokens,
        guarded_tools(tokens) as tools,
        proxied(tmp_path, tools, tokens, credential=credential(tokens)) as proxy,
    ):
        await called(proxy)

        async def renewed() -> bool:
            assert "allow" == (await called(proxy))[0]
            return len(tokens.forms) > 1

        await until_true(renewed)
        assert 0 == tools.refused


async def test_a_token_that_the_server_refuses_is_renewed_once(tmp_path: Path) -> None:
    async with (
        token_server() as tokens,
        guarded_tools(tokens) as tools,
        proxied(tmp_path, tools, tokens, credential=credential(tokens)) as proxy,
    ):
        await called(proxy)
        tokens.revoke()
        again = await called(proxy)
        assert (("allow", "for gate"), 1, 2) == (again, tools.refused, len(tokens.forms))

        tokens.revoke()  # and the new one at once: somebody takes them all away
        proxy.forget_records()
        reason, _ = await called(proxy)
        assert ("upstream_auth", 2) == (reason, len(tools.ran))
        [outcome] = proxy.records("call.outcome")
        assert ("upstream_error", "upstream_auth") == (outcome["status"], outcome["error"])


async def test_what_the_endpoint_refuses_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        token_server() as tokens,
        guarded_tools(tokens) as tools,
        proxied(
            tmp_path, tools, tokens, credential=credential(tokens), secrets={"gate": "wrong-one"}
        ) as proxy,
    ):
        status, listed = await proxy.modern("tools/list")

        assert (200, 5023, "upstream_auth") == (
            status, listed["error"]["code"], listed["error"]["data"]["reason"],
        )  # fmt: skip
        assert b"" == bytes(tools.heard)
    logged = capsys.readouterr().out
    assert "invalid_client" in logged
    assert "wrong-one" not in logged
    assert tokens.client_secret not in logged  # what the endpoint told of itself


async def test_a_secret_that_is_not_there_is_said_to_be_that(tmp_path: Path) -> None:
    async with (
        token_server() as tokens,
        guarded_tools(tokens) as tools,
        proxied(tmp_path, tools, credential=credential(tokens)) as proxy,
    ):
        _, listed = await proxy.modern("tools/list")
        assert (5023, "secret_unresolved") == (
            listed["error"]["code"], listed["error"]["data"]["reason"],
        )  # fmt: skip

        write_secrets(tmp_path / "state", tokens)

        async def there() -> bool:
            return "result" in (await proxy.modern("tools/list"))[1]

        await until_true(there)
        assert [] == tools.ran


@pytest.mark.parametrize(
    ("entry", "secret", "trusted"),
    [
        ({"ca": "secret://ca"}, AUTHORITY.pem, True),
        ({"ca": "secret://ca"}, OTHER_AUTHORITY.pem, False),
        ({}, AUTHORITY.pem, False),
    ],
    ids=["its own", "another", "the machine's"],
)
async def test_a_server_is_trusted_by_the_authority_that_its_entry_names(
    tmp_path: Path, tls: ssl.SSLContext, entry: dict[str, Any], secret: str, trusted: bool
) -> None:
    async with (
        guarded_tools(tls=tls) as tools,
        proxied(tmp_path, tools, secrets={"ca": secret}, **entry) as proxy,
    ):
        _, listed = await proxy.modern("tools/list")

        assert trusted == ("result" in listed)
        assert trusted or 5020 == listed["error"]["code"]
        assert trusted == bool(tools.heard)


async def test_a_certificate_for_another_address_is_nobodys(tmp_path: Path) -> None:
    context = server_context(AUTHORITY.server("127.0.0.9"), tmp_path)
    async with (
        guarded_tools(tls=context) as tools,
        proxied(tmp_path, tools, ca="secret://ca") as proxy,
    ):
        _, listed = await proxy.modern("tools/list")

        assert (5020, b"") == (listed["error"]["code"], bytes(tools.heard))


CLIENT = AUTHORITY.client("the gate")
STRANGER = OTHER_AUTHORITY.client("the gate")
MTLS = {"kind": "mtls", "certificate": "secret://crt", "key": "secret://key"}


@pytest.mark.parametrize(
    ("shown", "secrets", "reason"),
    [
        (MTLS, {"crt": CLIENT.certificate, "key": CLIENT.key}, ""),
        ({"kind": "none"}, {}, "upstream_"),
        (MTLS, {"crt": STRANGER.certificate, "key": STRANGER.key}, "upstream_"),
        (MTLS, {"crt": CLIENT.certificate, "key": STRANGER.key}, "secret_unresolved"),
        (MTLS, {"crt": CLIENT.certificate, "key": CLIENT.encrypted_key}, "secret_unresolved"),
        (MTLS, {"crt": CLIENT.certificate}, "secret_unresolved"),
    ],
    ids=["its own", "none", "a stranger's", "another's key", "an encrypted key", "no key"],
)
async def test_a_server_that_wants_a_certificate_gets_the_one_of_its_entry(
    tmp_path: Path, shown: dict[str, Any], secrets: dict[str, str], reason: str
) -> None:
    context = server_context(SERVER, tmp_path, clients=AUTHORITY.pem)
    async with (
        guarded_tools(tls=context) as tools,
        proxied(tmp_path, tools, ca="secret://ca", credential=shown, secrets=secrets) as proxy,
    ):
        _, listed = await proxy.modern("tools/list")

        if not reason:
            assert "result" in listed
            assert {"the gate"} == set(tools.shown)
        else:
            assert listed["error"]["data"]["reason"].startswith(reason)
            assert b"" == bytes(tools.heard)


async def test_static_headers_go_with_each_request(tmp_path: Path) -> None:
    async with (
        guarded_tools() as tools,
        proxied(tmp_path, tools, headers={"X-Region": "eu", "X-Team": "a b"}) as proxy,
    ):
        await called(proxy)

        assert {("eu", "a b")} == {(one["x-region"], one["x-team"]) for one in tools.headers}
        assert [] == [one for one in tools.headers if "authorization" in one]


@pytest.mark.parametrize(("private", "code"), [("deny", 5020), ("allow", None)])
async def test_private_addresses_are_reached_only_where_the_plane_allows_it(
    tmp_path: Path, private: str, code: int | None
) -> None:
    async with (
        guarded_tools() as tools,
        proxied(tmp_path, tools, settings={"BEHAVRY_PROXY_EGRESS_PRIVATE": private}) as proxy,
    ):
        _, listed = await proxy.modern("tools/list")

        assert code == listed.get("error", {}).get("code")
        assert (code is None) == bool(tools.heard)


async def test_a_name_that_turns_into_another_machines_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resolved once for each connection, and the addresses that were looked at are dialled."""
    found = resolving(monkeypatch, "tools.example")
    found += [["127.0.0.1"], ["127.0.0.1", "169.254.169.254"], ["169.254.169.254"]]
    async with guarded_tools() as tools:
        port = tools.url.partition(":")[2].rpartition(":")[2].partition("/")[0]
        tools.url = f"http://tools.example:{port}/mcp"
        async with proxied(tmp_path, tools) as proxy:
            codes = []
            for _ in range(3):
                _, listed = await proxy.modern("tools/list")
                codes.append(listed.get("error", {}).get("code"))
                await proxy.authorizer.publish(servers=_moved(proxy, tools.url))
                await proxy.settled()

        assert ([None, 5020, 5020], []) == (codes, found)
        assert {f"tools.example:{port}"} == {one["host"] for one in tools.headers}


def _moved(proxy: Gateway, url: str) -> dict[str, Any]:
    """The entry changes, so that connections are made anew."""
    entry = proxy.authorizer.snapshot["tenants"][proxy.tenant]["servers"]["notes"]
    return {"notes": {**entry, "urls": [url], "headers": {"X-N": str(len(str(entry)))}}}
