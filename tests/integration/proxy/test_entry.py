"""The door: what does not get as far as a decision, and what it is told (mcp.md 1, 2, 3)."""

import base64
import hmac
import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from services.common.clock import SystemClock
from services.proxy.failures import ALLOWED
from tests.fakes import mcp_wire as wire
from tests.fakes.authorizer import OTHER_AGENT, OTHER_TENANT, SESSION
from tests.fakes.gateway import BOTH, MODERN_META, Gateway, modern_request, until_true
from tests.fakes.tool_server import ToolServer

LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": MODERN_META}}
MODERN = {"mcp-protocol-version": wire.MODERN, "mcp-method": "tools/list"}

CHECKED = {
    "another host": ({"host": "evil.example"}, (), 421),
    "another origin": ({"origin": "https://evil.example"}, (), 403),
    "no JSON": ({"content-type": "text/plain"}, (), 415),
    "compressed": ({"content-encoding": "gzip"}, (), 415),
    "accepts no JSON": ({"accept": "text/event-stream"}, (), 406),
    "accepts no events": ({"accept": "application/json"}, (), 406),
}  # fmt: skip


@pytest.mark.parametrize(("headers", "drop", "status"), CHECKED.values(), ids=CHECKED)
async def test_the_first_checks_need_no_identity(
    proxy: Gateway, headers: dict[str, str], drop: tuple[str, ...], status: int
) -> None:
    refused, _ = await proxy.post(LIST, headers={**MODERN, **headers}, token="nonsense", drop=drop)
    passed, _ = await proxy.post(LIST, headers=MODERN)

    assert (status, 200) == (refused, passed)
    assert [] == proxy.records("auth.failed")


async def test_paths_and_verbs(proxy: Gateway) -> None:
    async def status(verb: str, path: str) -> int:
        async with proxy.http.request(verb, proxy.url + path) as response:
            return response.status

    assert 404 == await status("GET", "/")
    assert 404 == await status("POST", "/mcp/v1/key")
    assert 404 == await status("POST", "/mcp/v1/all")
    assert 404 == await status("POST", "/mcp/v1/Notes")
    assert 404 == await status("POST", "/mcp/v1/notes/else")
    assert 404 == await status("POST", "/mcp/v1/notes/key/")
    assert 404 == await status("POST", "/mcp/v1/no%2Ftes")
    assert 405 == await status("GET", "/mcp/v1/notes")
    assert 405 == await status("DELETE", "/mcp/v1/notes")
    assert 405 == await status("PUT", "/mcp/v1/notes")
    assert 405 == await status("GET", "/api/v1/auth/token")
    assert 200 == await status("GET", "/healthz")


async def test_metadata_is_for_the_discovering_form_alone(proxy: Gateway) -> None:
    root = "/.well-known/oauth-protected-resource"

    async def get(path: str) -> tuple[int, Any]:
        async with proxy.http.get(proxy.url + path) as response:
            content = await response.read()
            return response.status, orjson.loads(content) if content else None

    known_status, known = await get(f"{root}/mcp/v1/notes")
    unknown_status, unknown = await get(f"{root}/mcp/v1/nobody")

    assert (200, 200) == (known_status, unknown_status)
    assert known == {
        "resource": f"{proxy.url}/mcp/v1/notes",
        "authorization_servers": ["http://127.0.0.1:8701"],
        "scopes_supported": ["mcp"],
        "bearer_methods_supported": ["header"],
    }
    assert unknown == json.loads(json.dumps(known).replace("notes", "nobody"))
    for path in (
        root,
        f"{root}/mcp/v1/notes/key",
        f"{root}/mcp/v1/key",
        "/.well-known/oauth-authorization-server",
        "/.well-known/openid-configuration",
    ):
        assert (404, None) == await get(path)


async def test_401_says_where_to_learn_more_and_the_key_form_does_not(proxy: Gateway) -> None:
    async def challenge(*, key: bool, token: str | None) -> tuple[int, str]:
        headers = {"content-type": "application/json", "accept": BOTH}
        if token:
            headers["authorization"] = f"Bearer {token}"
        async with proxy.http.post(proxy.mcp(key=key), json=LIST, headers=headers) as response:
            return response.status, response.headers["www-authenticate"]

    where = f"{proxy.url}/.well-known/oauth-protected-resource/mcp/v1/notes"
    about = f'Bearer resource_metadata="{where}", scope="mcp"'
    assert (401, about) == await challenge(key=False, token=None)
    assert (401, f'{about}, error="invalid_token"') == await challenge(key=False, token="x")
    assert (401, "Bearer") == await challenge(key=True, token=None)
    assert (401, 'Bearer error="invalid_token"') == await challenge(key=True, token="x")


def hs256(claims: dict[str, Any], secret: bytes) -> str:
    def b64(content: bytes) -> bytes:
        return base64.urlsafe_b64encode(content).rstrip(b"=")

    signed = b64(b'{"alg":"HS256","kid":"k1"}') + b"." + b64(orjson.dumps(claims))
    return (signed + b"." + b64(hmac.digest(secret, signed, "sha256"))).decode()


def resigned(proxy: Gateway, header: dict[str, Any]) -> str:
    """A good token's claims under another header."""
    key = proxy.issuer.key
    claims = jwt.decode(proxy.issuer.token(), key, algorithms=["RS256"]).claims
    if header["alg"] == "HS256":
        return hs256(claims, key.as_pem(private=False))
    return jwt.encode(header, claims, key, algorithms=[header["alg"]])


def unsigned(proxy: Gateway) -> str:
    _, body, _ = proxy.issuer.token().split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"k1"}').decode().rstrip("=")
    return f"{none}.{body}."


STRANGER = RSAKey.generate_key(2048, parameters={"kid": "k1"})
UNKNOWN = RSAKey.generate_key(2048, parameters={"kid": "k2"})
LONG_AGO = 1_700_000_000
NOW = SystemClock().now_ns() // 10**9
FORGED: dict[str, Callable[[Gateway], str]] = {
    "another key": lambda proxy: proxy.issuer.token(key=STRANGER),
    "unknown kid": lambda proxy: proxy.issuer.token(key=UNKNOWN),
    "no kid": lambda proxy: resigned(proxy, {"alg": "RS256"}),
    "PS256": lambda proxy: resigned(proxy, {"alg": "PS256", "kid": "k1"}),
    "HS256 with the public key": lambda proxy: resigned(proxy, {"alg": "HS256"}),
    "alg none": unsigned,
    "expired": lambda proxy: proxy.issuer.token(iat=LONG_AGO, nbf=LONG_AGO, exp=LONG_AGO + 900),
    "expired, of another session": lambda proxy: proxy.issuer.token(
        iat=NOW - 1000, nbf=NOW - 1000, exp=NOW - 100, sid="never-seen"
    ),
    "not yet": lambda proxy: proxy.issuer.token(nbf=4_000_000_000),
    "another issuer": lambda proxy: proxy.issuer.token(iss="http://evil.example"),
    "another audience": lambda proxy: proxy.issuer.token(aud="behavry:dp:elsewhere"),
    "another resource": lambda proxy: proxy.issuer.token(aud=f"{proxy.url}/mcp/v1/other"),
    "no tenant": lambda proxy: proxy.issuer.token(tid=None),
    "no session": lambda proxy: proxy.issuer.token(sid=None),
    "no expiry": lambda proxy: proxy.issuer.token(exp=None),
    "bound to a certificate": lambda proxy: proxy.issuer.token(cnf={"x5t#S256": "abc"}),
}


@pytest.mark.parametrize("how", FORGED.values(), ids=FORGED)
async def test_forged_and_foreign_tokens_are_nobody(
    proxy: Gateway, how: Callable[[Gateway], str]
) -> None:
    status, _ = await proxy.call("read_note", token=how(proxy))

    assert 401 == status
    assert "auth.failed" in [one["type"] for one in await proxy.recorded("auth.failed")]


async def test_a_token_without_the_scope_is_told_which_it_needs(proxy: Gateway) -> None:
    async def challenge(scope: str, **claims: Any) -> tuple[int, str | None]:
        token = proxy.issuer.token(scope=scope, **claims)
        body, sent = modern_request("tools/list", {}, {}, {})
        async with proxy.sending(body, headers=sent, token=token) as response:
            return response.status, response.headers.get("www-authenticate")

    where = f"{proxy.url}/.well-known/oauth-protected-resource/mcp/v1/notes"
    wanted = f'Bearer resource_metadata="{where}", scope="mcp", error="insufficient_scope"'
    assert (200, None) == await challenge("openid mcp")
    assert (403, wanted) == await challenge("openid mcp.read")
    assert 401 == (await challenge("openid", aud="behavry:dp:elsewhere"))[0]
    assert "insufficient_scope" == (await proxy.recorded("auth.failed"))[0]["reason"]


async def test_a_token_for_this_resource_serves_and_any_spelling_of_loopback(
    proxy: Gateway,
) -> None:
    plain = proxy.issuer.token(aud=f"{proxy.url}/mcp/v1/notes")
    local = proxy.issuer.token(aud=f"{proxy.url}/mcp/v1/notes".replace("127.0.0.1", "localhost"))

    assert 200 == (await proxy.modern("tools/list", token=plain))[0]
    assert 200 == (await proxy.modern("tools/list", token=local))[0]


async def test_two_credentials_or_one_in_the_query_are_none(proxy: Gateway) -> None:
    token = proxy.issuer.token()
    headers = {"content-type": "application/json", "accept": BOTH, **MODERN}

    async def status(url: str, **more: str) -> int:
        async with proxy.http.post(url, json=LIST, headers={**headers, **more}) as response:
            return response.status

    bearer = f"Bearer {token}"
    assert 200 == await status(proxy.mcp(), authorization=bearer)
    assert 200 == await status(proxy.mcp(key=True), **{"x-api-key": token})
    assert 401 == await status(proxy.mcp(), **{"x-api-key": token})
    assert 401 == await status(proxy.mcp(key=True), authorization=bearer, **{"x-api-key": token})
    assert 401 == await status(f"{proxy.mcp()}?access_token={token}", authorization=bearer)
    assert 401 == await status(f"{proxy.mcp()}?access_token={token}")


async def test_failures_are_in_the_tenants_chain_only_if_the_signature_is_good(
    proxy: Gateway,
) -> None:
    await proxy.modern("tools/list", token=FORGED["another audience"](proxy))
    await proxy.modern("tools/list", token=FORGED["another key"](proxy))

    known, unknown = await proxy.recorded("auth.failed", count=2)

    assert (proxy.tenant, "tenant") == (known["tenant"], known["chain"])
    assert "system" == unknown["chain"]
    assert unknown["tenant"] == "00000000-0000-0000-0000-000000000000"


async def test_an_address_that_fails_twenty_times_has_to_wait(proxy: Gateway) -> None:
    statuses = [(await proxy.modern("tools/list", token="wrong"))[0] for _ in range(21)]

    assert [401] * 20 + [429] == statuses
    assert 10 == len(await proxy.recorded("auth.failed", count=10))


async def test_who_was_let_in_before_does_not_wait_for_who_shares_its_address(
    proxy: Gateway,
) -> None:
    known, stranger = proxy.issuer.token(), proxy.issuer.token()
    before, _ = await proxy.modern("tools/list", token=known)
    for number in range(20):
        await proxy.modern("tools/list", token=f"wrong{number}")
    statuses = [(await proxy.modern("tools/list", token=one))[0] for one in (known, stranger)]
    await proxy.authorizer.signal(revoked_sessions=[SESSION])

    async def waits() -> bool:
        return (await proxy.modern("tools/list", token=known))[0] == 429

    await until_true(waits)  # whoever was turned away since is nobody again

    assert ([200, 429], 200) == (statuses, before)


async def test_unknown_server_and_server_not_granted_read_alike(proxy: Gateway) -> None:
    unknown = await proxy.modern("tools/list", server="nobody")
    foreign = await proxy.modern("tools/list", server="other")
    other_agent = await proxy.modern("tools/list", token=proxy.issuer.token(sub=OTHER_AGENT))
    stranger = await proxy.modern(
        "tools/list", token=proxy.issuer.token(sub="0199d0d0-0000-7000-8000-0000000000ff")
    )

    assert (404, 4040) == (unknown[0], unknown[1]["error"]["code"])
    assert unknown == foreign == other_agent == stranger
    turned_away = await proxy.recorded("call.rejected", count=4)
    assert {"unknown_server"} == {record["reason"] for record in turned_away}
    assert ["nobody", "other"] == [record["server"] for record in turned_away][:2]


async def test_a_suspended_agent_is_told_so_and_counts_as_no_failed_sign_in(
    proxy: Gateway, tools: ToolServer
) -> None:
    agents = proxy.authorizer.snapshot["tenants"][proxy.tenant]["agents"]
    proxy.authorizer.rules.agents[proxy.agent] = "agent_suspended"
    await proxy.authorizer.publish(
        agents={**agents, proxy.agent: {**agents[proxy.agent], "status": "suspended"}},
        revoked_sessions=[SESSION],
    )
    await proxy.settled()
    asked = len(tools.headers_seen())

    answers = [await proxy.call("read_note", {"call": "c"}) for _ in range(ALLOWED + 1)]

    assert {200} == {status for status, _ in answers}
    said = answers[-1][1]["result"]["_meta"]["com.behavry/decision"]
    assert ("deny", "agent_suspended") == (said["verdict"], said["reason"])
    assert [] == proxy.records("auth.failed")
    assert asked == len(tools.headers_seen())


async def test_a_revoked_session_is_nobody_at_once(proxy: Gateway) -> None:
    before, _ = await proxy.modern("tools/list")
    await proxy.authorizer.publish(revoked_sessions=[SESSION])
    await proxy.settled()

    after, _ = await proxy.modern("tools/list")

    assert (200, 401) == (before, after)
    assert "session_revoked" == (await proxy.recorded("auth.failed"))[0]["reason"]


async def test_the_body_has_a_limit(proxy: Gateway) -> None:
    def body(size: int) -> bytes:
        frame = orjson.dumps({**LIST, "params": {"_meta": MODERN_META, "x": ""}})
        return frame.replace(b'"x":""', b'"x":"%s"' % (b"x" * (size - len(frame))))

    limit = 4 * 1024 * 1024
    assert 200 == (await proxy.post(body(limit), headers=MODERN))[0]
    assert 413 == (await proxy.post(body(limit + 1), headers=MODERN))[0]

    async def chunks() -> Any:
        for _ in range(5):
            yield b" " * 1024 * 1024

    token = proxy.issuer.token()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json",
               "accept": BOTH, **MODERN}  # fmt: skip
    async with proxy.http.post(proxy.mcp(), data=chunks(), headers=headers) as response:
        assert 413 == response.status
    assert ["body_too_large"] == [one["reason"] for one in proxy.records("call.rejected")]


async def test_headers_have_a_limit(proxy: Gateway) -> None:
    many = {f"x-h{i}": "v" for i in range(90)}
    more = {f"x-h{i}": "v" for i in range(120)}
    big = {f"x-h{i}": "v" * 4000 for i in range(9)}

    assert 200 == (await proxy.modern("tools/list", headers=many))[0]
    assert 431 == (await proxy.modern("tools/list", headers=more))[0]
    assert 431 == (await proxy.modern("tools/list", headers=big))[0]


REJECTED: dict[str, tuple[bytes, dict[str, str], int, int]] = {
    "no JSON": (b"{", {}, 400, -32700),
    "a batch": (orjson.dumps([LIST]), MODERN, 400, -32600),
    "a key twice": (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}', {}, 400, -32600),
    "modern header, legacy body": (
        orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}), MODERN, 400, -32602,
    ),
    "another method in the header": (
        orjson.dumps(LIST), {**MODERN, "mcp-method": "tools/call"}, 400, -32020,
    ),
    "an unknown version": (
        orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}),
        {"mcp-protocol-version": "2031-01-01"}, 400, -32022,
    ),
    "an unknown method": (
        orjson.dumps({**LIST, "method": "tools/steal"}),
        {**MODERN, "mcp-method": "tools/steal"}, 404, -32601,
    ),
    "a removed method": (
        orjson.dumps({**LIST, "method": "ping"}), {**MODERN, "mcp-method": "ping"}, 404, -32601,
    ),
    "who listens for nothing in particular": (
        orjson.dumps({**LIST, "method": "subscriptions/listen"}),
        {**MODERN, "mcp-method": "subscriptions/listen"}, 200, -32602,
    ),
    "an invented cursor": (
        orjson.dumps({**LIST, "params": {"_meta": MODERN_META, "cursor": "b1.1.x"}}),
        MODERN, 200, -32602,
    ),
    "neither session nor version": (
        orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}), {}, 400, -32600,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "headers", "status", "code"), REJECTED.values(), ids=REJECTED)
async def test_malformed_requests_of_known_agents_are_recorded(  # noqa: PLR0917  # a table's columns
    proxy: Gateway, tools: ToolServer, body: bytes, headers: dict[str, str], status: int, code: int
) -> None:
    found, answer = await proxy.post(body, headers=headers)

    assert (status, code) == (found, answer["error"]["code"])
    record = proxy.records("call.rejected")[0]
    assert (f"agent:{proxy.agent}", str(code)) == (record["chain"], record["error"])
    assert [] == tools.ran()


async def test_control_away_means_no_new_tokens_and_says_so(proxy: Gateway) -> None:
    async with proxy.http.post(
        f"{proxy.url}/api/v1/auth/token", data={"grant_type": "client_credentials"}
    ) as response:
        body = await response.json(content_type=None)

    assert (503, "control_unavailable") == (response.status, body["code"])
    key_status, _ = await proxy.modern("tools/list", token="bhv_ak_abc.def")
    assert 503 == key_status


async def test_while_control_is_away_who_was_let_in_goes_on_and_the_record_says_so(
    proxy: Gateway, tools: ToolServer
) -> None:
    now_s = SystemClock().now_ns() // 10**9
    times: dict[str, Any] = {"iat": now_s - 1000, "nbf": now_s - 1000, "exp": now_s - 100}
    late, stranger = (proxy.issuer.token(sid=sid, **times) for sid in (SESSION, "never-seen"))
    status, answer = await proxy.call("read_note", {"call": "c"}, token=late)
    unknown, _ = await proxy.call("read_note", {"call": "d"}, token=stranger)
    (intent,) = proxy.records("call.intent")
    await proxy.call("read_note", {"call": "e"})
    await proxy.authorizer.signal(revoked_sessions=[SESSION])

    async def ended() -> bool:
        return (await proxy.modern("tools/list", token=late))[0] == 401

    await until_true(ended)

    assert (200, False, 401) == (status, answer["result"]["isError"], unknown)
    assert ["c", "e"] == tools.ran()
    identities = [one["actor"]["identity"] for one in proxy.records("call.intent")]
    assert ("grace", ["grace", "token"]) == (intent["actor"]["identity"], identities)


async def test_the_same_agent_id_in_another_tenant_is_another_agent(proxy: Gateway) -> None:
    """Its tools/list is its own view, its records its own chain."""
    token = proxy.issuer.token(tid=OTHER_TENANT)

    status, _ = await proxy.modern("tools/list", token=token)

    assert 200 == status
    assert OTHER_TENANT == (await proxy.recorded("catalog.served"))[-1]["tenant"]
