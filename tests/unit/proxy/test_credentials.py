"""When a token is asked for, for whom, and how long it is used."""

import asyncio
import json
import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec
import pytest
import structlog
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from services.common.ids import AgentId, ServerSlug, SessionId, TenantId
from services.common.telemetry.counters import Counters
from services.proxy.backends import token_requests
from services.proxy.backends.credentials import Credentials
from services.proxy.backends.secrets import Secrets
from services.proxy.backends.token_endpoint import Answered
from services.proxy.backends.token_requests import TokenRefused, TokenRequest
from services.proxy.backends.upstream import UpstreamFailed
from services.proxy.calls import Caller, Visit
from services.proxy.snapshot import Agent, Credential, Server, Tenant
from tests.fakes.clock import ManualClock

TOKEN_URL = "https://auth.example/token"
CLIENT = Credential(
    kind="client_credentials",
    token_url=TOKEN_URL,
    client_id="behavry gate",
    client_secret="secret://client",
    scope="tools.read tools.write",
    resource="https://tools.example/mcp",
)
BEARER = Credential(
    kind="jwt_bearer", token_url=TOKEN_URL, key="secret://key", issuer="behavry", key_id="k7",
    claims={"tier": "gold", "iss": "somebody"},
)  # fmt: skip
EXCHANGE = Credential(
    kind="token_exchange", token_url=TOKEN_URL, key="secret://key", issuer="https://gw.example",
    audience="tools",
)  # fmt: skip
KEYS: dict[str, tuple[Any, str]] = {
    "RSA": (RSAKey.generate_key(2048), "RS256"),
    "P-256": (ECKey.generate_key("P-256"), "ES256"),
    "P-384": (ECKey.generate_key("P-384"), "ES384"),
}


@dataclass
class Endpoint:
    """A token endpoint that says what a test wants, and counts."""

    life_s: Any = 3600
    status: int = 200
    more: dict[str, Any] = field(default_factory=dict)
    raw: bytes | None = None
    failure: str = ""
    asked: list[TokenRequest] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event | None = None

    async def __call__(
        self, url: str, request: TokenRequest, *, tls: ssl.SSLContext, private: bool
    ) -> Answered:
        assert (TOKEN_URL, True) == (url, private)
        assert ssl.CERT_REQUIRED == tls.verify_mode
        self.asked.append(request)
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.failure:
            raise TokenRefused(self.failure)
        told = {"access_token": f"t{len(self.asked)}", "token_type": "Bearer", **self.more}
        if self.life_s is not None:
            told["expires_in"] = self.life_s
        body = json.dumps(told).encode() if self.raw is None else self.raw
        return Answered(self.status, bytearray(body))

    def form(self, index: int = -1) -> dict[str, str]:
        return {name: only for name, [only] in parse_qs(self.asked[index].form.decode()).items()}


@dataclass
class World:
    clock: ManualClock
    endpoint: Endpoint
    credentials: Credentials
    directory: Path
    counters: Counters
    logged: list[Any]

    async def value(self, visit: Visit) -> str:
        found = await self.credentials.header(visit)
        assert found is not None
        assert b"authorization" == found[0]
        return found[1].decode()

    async def failure(self, visit: Visit) -> str:
        with pytest.raises(UpstreamFailed) as failed:
            await self.credentials.header(visit)
        assert failed.value.ran is False
        return failed.value.reason

    def secret(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)


@pytest.fixture
def world(tmp_path: Path) -> World:
    clock, endpoint, counters = ManualClock(), Endpoint(), Counters()
    logged = structlog.testing.CapturingLoggerFactory()
    made = World(
        clock=clock,
        endpoint=endpoint,
        credentials=Credentials(
            secrets=Secrets(tmp_path),
            clock=clock,
            counters=counters,
            log=structlog.wrap_logger(logged(), processors=[structlog.processors.JSONRenderer()]),
            post=endpoint,
        ),
        directory=tmp_path,
        counters=counters,
        logged=logged.logger.calls,
    )
    made.secret("client", "p+ss w/rd")
    made.secret("key", pem(KEYS["RSA"][0]))
    return made


def pem(key: Any) -> str:
    text: bytes = key.as_pem(private=True)
    return text.decode()


def visit(credential: Credential = CLIENT, **changes: Any) -> Visit:
    caller = Caller(
        tenant=TenantId(changes.pop("tenant", "t")),
        agent=AgentId(changes.pop("agent", "a")),
        session=SessionId("s"),
        issued_at_s=0,
        expires_at_s=0,
        audiences=frozenset(),
    )
    server = Server(
        id="1", domain="notes", transport="http", urls=("https://x/",), credential=credential
    )
    return Visit(
        caller=caller,
        tenant=Tenant(slug="default", status="active"),
        agent=Agent(name=f"agent {caller.agent}", status="active"),
        slug=ServerSlug(changes.pop("slug", "notes")),
        server=msgspec.structs.replace(server, **changes),
        revision="1",
        client_ip="",
    )


async def test_without_a_credential_there_is_no_header_and_no_question(world: World) -> None:
    assert None is await world.credentials.header(visit(Credential()))
    assert None is await world.credentials.header(visit(Credential(kind="mtls")))
    assert not world.credentials.forget(visit(Credential()))
    assert [] == world.endpoint.asked


async def test_a_header_is_read_anew_when_its_file_changes(world: World) -> None:
    one = visit(Credential(kind="header", name="X-Key", value="secret://tool"))
    world.secret("tool", "first")
    first = await world.credentials.header(one)
    world.secret("tool", "second one")
    second = await world.credentials.header(one)

    assert ((b"X-Key", b"first"), (b"X-Key", b"second one")) == (first, second)
    assert not world.credentials.forget(one, second)


@pytest.mark.parametrize("name", ["X Key", "X-Key\r\nY", "", "ä", "x:y"])
async def test_a_name_that_is_none_goes_nowhere(world: World, name: str) -> None:
    world.secret("tool", "x")

    assert "upstream_auth" == await world.failure(
        visit(Credential(kind="header", name=name, value="secret://tool"))
    )


async def test_a_kind_of_a_later_version_is_no_credential(world: World) -> None:
    assert "upstream_auth" == await world.failure(visit(Credential(kind="kerberos")))


async def test_a_client_proves_itself_in_a_header_or_where_the_endpoint_wants_it(
    world: World,
) -> None:
    await world.value(visit())
    await world.value(visit(msgspec.structs.replace(CLIENT, client_auth="post"), slug="other"))

    expected = {
        "grant_type": "client_credentials",
        "scope": "tools.read tools.write",
        "resource": "https://tools.example/mcp",
    }
    assert expected == world.endpoint.form(0)
    # RFC 6749 2.3.1: each half is encoded as a form is.
    assert "Basic YmVoYXZyeStnYXRlOnAlMkJzcyt3JTJGcmQ=" == world.endpoint.asked[0].authorization
    assert {
        **expected, "client_id": "behavry gate", "client_secret": "p+ss w/rd",
    } == world.endpoint.form(1)  # fmt: skip
    assert "" == world.endpoint.asked[1].authorization


async def test_a_token_is_used_until_a_minute_before_its_end(world: World) -> None:
    assert "Bearer t1" == await world.value(visit())
    world.clock.advance(3539)
    assert "Bearer t1" == await world.value(visit())
    world.clock.advance(1)
    assert "Bearer t2" == await world.value(visit())

    assert 2 == len(world.endpoint.asked)
    assert 2 == world.counters.counter("proxy.upstream.tokens").value


@pytest.mark.parametrize(
    ("life_s", "used_s"), [(61, 1), (60, 30), (20, 10), ("120", 60), (90.5, 30), (None, 240)]
)
async def test_a_short_life_is_used_too(world: World, life_s: Any, used_s: float) -> None:
    world.endpoint.life_s = life_s
    await world.value(visit())
    world.clock.advance(used_s - 0.5)
    assert "Bearer t1" == await world.value(visit())
    world.clock.advance(1)
    assert "Bearer t2" == await world.value(visit())


async def test_many_calls_at_once_ask_once(world: World) -> None:
    world.endpoint.gate = asyncio.Event()
    waiting = [asyncio.create_task(world.value(visit(agent=f"a{n % 5}"))) for n in range(50)]
    await asyncio.sleep(0)
    world.endpoint.gate.set()

    assert {"Bearer t1"} == set(await asyncio.gather(*waiting))
    assert 1 == len(world.endpoint.asked)


async def test_whoever_asks_and_leaves_leaves_the_others_with_a_token(world: World) -> None:
    world.endpoint.gate = asyncio.Event()
    first = asyncio.create_task(world.value(visit()))
    other = asyncio.create_task(world.value(visit()))
    await world.endpoint.begun.wait()
    first.cancel()
    world.endpoint.gate.set()

    assert "Bearer t2" == await other
    assert first.cancelled()


async def test_a_refusal_is_everybodys_who_waited_and_not_asked_for_at_once_again(
    world: World,
) -> None:
    world.endpoint.status = 503
    world.endpoint.gate = asyncio.Event()
    waiting = [asyncio.create_task(world.failure(visit())) for _ in range(20)]
    await asyncio.sleep(0)
    world.endpoint.gate.set()
    assert {"upstream_auth"} == set(await asyncio.gather(*waiting))
    assert "upstream_auth" == await world.failure(visit())
    assert 1 == len(world.endpoint.asked)

    world.endpoint.status = 200
    world.clock.advance(1)
    assert "Bearer t2" == await world.value(visit())


async def test_tenants_and_servers_never_share_a_token(world: World) -> None:
    values = [
        await world.value(visit()),
        await world.value(visit(tenant="t2")),
        await world.value(visit(slug="other")),
        await world.value(visit(agent="b")),
    ]

    assert ["Bearer t1", "Bearer t2", "Bearer t3", "Bearer t1"] == values


async def test_a_server_whose_entry_changed_needs_its_own_token(world: World) -> None:
    await world.value(visit())
    changed = await world.value(visit(urls=("https://elsewhere/",)))

    assert "Bearer t2" == changed


async def test_a_token_that_was_refused_is_renewed_once(world: World) -> None:
    one = visit()
    used = await world.credentials.header(one)
    assert world.credentials.forget(one, used)
    assert "Bearer t2" == await world.value(one)
    # Another call that was refused with the first finds the second already there.
    assert world.credentials.forget(one, used)
    renewed = await world.credentials.header(one)
    assert renewed == (b"authorization", b"Bearer t2")

    assert not world.credentials.forget(one, renewed)
    assert "Bearer t2" == await world.value(one)
    world.clock.advance(10)
    assert world.credentials.forget(one, renewed)
    assert "Bearer t3" == await world.value(one)


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("as_jwk", [False, True])
async def test_an_assertion_is_signed_by_whatever_key_there_is(
    world: World, name: str, as_jwk: bool
) -> None:
    key, algorithm = KEYS[name]
    world.secret("key", json.dumps(key.as_dict(private=True)) if as_jwk else pem(key))
    await world.value(visit(BEARER))
    form = world.endpoint.form()
    read = jwt.decode(form["assertion"], key, algorithms=[algorithm])

    assert {"grant_type", "assertion"} == set(form)
    assert "urn:ietf:params:oauth:grant-type:jwt-bearer" == form["grant_type"]
    assert {"alg": algorithm, "typ": "JWT", "kid": "k7"} == read.header
    now_s = world.clock.now_ns() // 10**9
    assert {
        "iss": "behavry", "sub": "behavry", "aud": TOKEN_URL, "iat": now_s, "exp": now_s + 300,
        "tier": "gold", "jti": read.claims["jti"],
    } == read.claims  # fmt: skip


@pytest.mark.parametrize("name", ["RSA", "P-256"])
async def test_a_key_may_be_in_the_form_of_its_kind(world: World, name: str) -> None:
    """`BEGIN RSA PRIVATE KEY`, `BEGIN EC PRIVATE KEY`: what older tools write."""
    key, algorithm = KEYS[name]
    older = load_pem_private_key(key.as_pem(private=True), None).private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )
    world.secret("key", older.decode())
    await world.value(visit(BEARER))

    assertion = world.endpoint.form()["assertion"]
    assert "behavry" == jwt.decode(assertion, key, algorithms=[algorithm]).claims["iss"]


async def test_each_assertion_is_another(world: World) -> None:
    world.endpoint.life_s = 60
    await world.value(visit(BEARER))
    world.clock.advance(31)
    await world.value(visit(BEARER))
    ids = {
        jwt.decode(world.endpoint.form(n)["assertion"], KEYS["RSA"][0]).claims["jti"]
        for n in range(2)
    }

    assert 2 == len(ids)


async def test_an_exchange_names_the_agent_in_a_short_token_of_ours(world: World) -> None:
    values = [await world.value(visit(EXCHANGE, agent=agent)) for agent in ("a", "b", "a")]
    subjects = [
        jwt.decode(world.endpoint.form(n)["subject_token"], KEYS["RSA"][0]).claims for n in range(2)
    ]

    assert ["Bearer t1", "Bearer t2", "Bearer t1"] == values
    form = world.endpoint.form(0)
    assert {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": form["subject_token"],
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "audience": "tools",
    } == form
    assert [("a", "agent a", "t"), ("b", "agent b", "t")] == [
        (one["sub"], one["name"], one["tenant"]) for one in subjects
    ]
    assert {60} == {one["exp"] - one["iat"] for one in subjects}
    assert {("https://gw.example", TOKEN_URL)} == {(one["iss"], one["aud"]) for one in subjects}


UNUSABLE: dict[str, dict[str, Any]] = {
    "an error": {"status": 400, "raw": b'{"error": "invalid_client"}'},
    "a redirect": {"status": 302},
    "no JSON": {"raw": b"<html>"},
    "no object": {"raw": b"[]"},
    "no token": {"raw": b'{"token_type": "Bearer"}'},
    "an empty token": {"more": {"access_token": ""}},
    "a token that ends the header": {"more": {"access_token": "a\r\nx: y"}},
    "a token with a blank": {"more": {"access_token": "a b"}},
    "a token of another alphabet": {"more": {"access_token": "ä"}},
    "another kind of token": {"more": {"token_type": "N_A"}},
    "an end before its beginning": {"life_s": 0},
    "an end that is none": {"life_s": "soon"},
    "not a number": {"life_s": "nan"},
    "nobody there": {"failure": "unreachable"},
}


@pytest.mark.parametrize("told", UNUSABLE.values(), ids=UNUSABLE)
async def test_what_is_no_token_ends_the_call(world: World, told: dict[str, Any]) -> None:
    for name, value in told.items():
        setattr(world.endpoint, name, value)

    assert "upstream_auth" == await world.failure(visit())


async def test_the_log_tells_why_in_words_of_ours(world: World) -> None:
    for number, raw in enumerate([b'{"error": "invalid_client"}', b'{"error": "p+ss w/rd"}']):
        world.endpoint.status, world.endpoint.raw = 400, raw
        await world.failure(visit(slug=f"s{number}"))

    lines = [json.loads(call.args[0]) for call in world.logged]
    assert [("s0", "invalid_client"), ("s1", "status_400")] == [
        (line["server"], line["why"]) for line in lines
    ]


BROKEN: dict[str, tuple[Credential, dict[str, str]]] = {
    "no such file": (msgspec.structs.replace(CLIENT, client_secret="secret://none"), {}),
    "an empty file": (CLIENT, {"client": "\n"}),
    "no key": (msgspec.structs.replace(BEARER, key=""), {}),
    "not a key": (BEARER, {"key": "hunter2"}),
    "a public key": (BEARER, {"key": KEYS["RSA"][0].as_pem(private=False).decode()}),
    "a public JWK": (BEARER, {"key": json.dumps(KEYS["P-256"][0].as_dict(private=False))}),
    "a key of a kind that few know": (BEARER, {"key": pem(OKPKey.generate_key("Ed25519"))}),
    "a shared secret": (BEARER, {"key": '{"kty": "oct", "k": "aGVsbG8", "d": "x"}'}),
    "JSON of something else": (BEARER, {"key": "{}"}),
    "an authority that is none": (msgspec.structs.replace(CLIENT, token_ca="secret://client"), {}),
}


@pytest.mark.parametrize(("credential", "files"), BROKEN.values(), ids=BROKEN)
async def test_a_secret_that_cannot_be_used_is_said_to_be_that(
    world: World, credential: Credential, files: dict[str, str]
) -> None:
    for name, text in files.items():
        world.secret(name, text)

    assert "secret_unresolved" == await world.failure(visit(credential))
    assert [] == world.endpoint.asked


async def test_secrets_are_in_no_representation(world: World) -> None:
    await world.value(visit())
    [request] = world.endpoint.asked
    shown = repr(request) + repr(replace(request)) + repr(token_requests.Token("t1x", 3))

    assert "p+ss" not in shown
    assert "Basic" not in shown
    assert "t1x" not in shown
    assert "Bearer" not in repr(world.credentials._places)
