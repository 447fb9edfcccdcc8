"""Whatever a provider, a browser or somebody between them bends about a sign-in: refused, recorded
by its reason, and told like everything else. Beside each stands a twin that is only unusual.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import orjson
import pytest
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from tests.altered import altered
from tests.fakes.clock import ManualClock
from tests.fakes.openid import CLIENT, LOGOUT, OpenIdProvider, openid_provider
from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.openid import (
    CALLBACK,
    LOGIN,
    SESSION,
    Browser,
    failures,
    signs_in_by,
)
from tests.integration.control.test_oidc import sent
from tests.integration.control.test_problems import check
from tests.promises import promise

OTHER: Final = ECKey.generate_key("P-256")
RSA: Final = RSAKey.generate_key(2048)
Bend = Callable[[OpenIdProvider], None]


@pytest.fixture
async def provider(rest: Rest, clock: ManualClock) -> AsyncIterator[OpenIdProvider]:
    async with openid_provider(clock) as made:
        await signs_in_by(rest, made.url)
        yield made


def claims(**bent: Any) -> Bend:
    """None takes a claim away; a function makes it from what it was."""

    def bend(provider: OpenIdProvider) -> None:
        def change(told: dict[str, Any]) -> dict[str, Any]:
            news = {n: new(told.get(n)) if callable(new) else new for n, new in bent.items()}
            return told | news

        provider.bend = change

    return bend


def header(**bent: Any) -> Bend:
    def bend(provider: OpenIdProvider) -> None:
        provider.header = bent

    return bend


def signed_by(sign: Callable[[OpenIdProvider, dict[str, Any], bytes], str]) -> Bend:
    def bend(provider: OpenIdProvider) -> None:
        provider.sign = lambda header, payload: sign(provider, header, payload)

    return bend


def unsigned(_: OpenIdProvider, header: dict[str, Any], payload: bytes) -> str:
    parts = (orjson.dumps(header | {"alg": "none"}), payload, b"")
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def hs256(secret: bytes, header: dict[str, Any], payload: bytes) -> str:
    """By hand: libraries make none of these any more."""
    parts = (orjson.dumps(header | {"alg": "HS256"}), payload)
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    mac = base64.urlsafe_b64encode(hmac.digest(secret, text, "sha256")).rstrip(b"=")
    return (text + b"." + mac).decode()


def by_the_public_key(provider: OpenIdProvider, header: dict[str, Any], payload: bytes) -> str:
    """The key that everybody has, as if it were a shared secret."""
    return hs256(provider.key.as_pem(private=False), header, payload)


def by_another(_: OpenIdProvider, header: dict[str, Any], payload: bytes) -> str:
    return jws.serialize_compact(header, payload, OTHER, algorithms=["ES256"])


def with_its_own_key(_: OpenIdProvider, header: dict[str, Any], payload: bytes) -> str:
    told = header | {"jwk": OTHER.as_dict(private=False)}
    return jws.serialize_compact(told, payload, OTHER, algorithms=["ES256"])


def spoilt(provider: OpenIdProvider, header: dict[str, Any], payload: bytes) -> str:
    token = jws.serialize_compact(header, payload, provider.key, algorithms=["ES256"])
    return altered(token, -10)


def secret_in_the_set(provider: OpenIdProvider) -> None:
    """A key set that makes a shared secret known, and a token under it."""
    secret = OctKey.generate_key(256)
    provider.jwks = {"keys": [{**secret.as_dict(private=True), "kid": "one"}]}
    provider.sign = lambda header, payload: hs256(secret.raw_value, header, payload)


def rekeyed(provider: OpenIdProvider) -> None:
    """The provider goes by another key under the old one's name; a token of the old one comes."""
    old, new = provider.key, ECKey.generate_key("P-256")
    provider.jwks = {"keys": [{**new.as_dict(private=False), "kid": "one"}]}
    provider.sign = lambda header, payload: jws.serialize_compact(
        header, payload, old, algorithms=["ES256"]
    )


def published(**told: Any) -> Bend:
    """The right key, of which the key set says something else; None takes a word away."""

    def bend(provider: OpenIdProvider) -> None:
        key = {**provider.public()["keys"][0], **told}
        provider.jwks = {"keys": [{name: one for name, one in key.items() if one is not None}]}

    return bend


def switched(alg: str, key_of: Callable[[], RSAKey | ECKey], *, said: str | None = None) -> Bend:
    """A token of this algorithm under the name of a key that is for another one."""

    def bend(provider: OpenIdProvider) -> None:
        shown = key_of().as_dict(private=False) | ({"alg": said} if said else {})
        provider.jwks = {"keys": [{**shown, "kid": "one"}]}
        provider.header = {"alg": alg, "kid": "one"}
        signer = RSA if alg[:2] in {"RS", "PS"} else provider.key
        provider.sign = lambda header, payload: _by_hand(alg, signer, header, payload)

    return bend


def _by_hand(alg: str, key: Any, header: dict[str, Any], payload: bytes) -> str:
    parts = (orjson.dumps(header), payload)
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    made = jws.JWSRegistry.algorithms[alg].sign(text, key)
    return (text + b"." + base64.urlsafe_b64encode(made).rstrip(b"=")).decode()


def with_its_own_rules(provider: OpenIdProvider, header: dict[str, Any], payload: bytes) -> str:
    """An extension that must be understood (RFC 7515 4.1.11), signed by the right key."""
    parts = (orjson.dumps(header | {"crit": ["x"], "x": 1}), payload)
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    made = jws.JWSRegistry.algorithms["ES256"].sign(text, provider.key)
    return (text + b"." + base64.urlsafe_b64encode(made).rstrip(b"=")).decode()


#: What is bent -> the reason in the record.
FORGED: Final[dict[str, tuple[Bend, str]]] = {
    "unsigned": (signed_by(unsigned), "oidc_algorithm_refused"),
    "shared secret": (signed_by(by_the_public_key), "oidc_algorithm_refused"),
    "secret in the key set": (secret_in_the_set, "oidc_algorithm_refused"),
    "another's key": (signed_by(by_another), "oidc_signature_wrong"),
    "a key of its own": (signed_by(with_its_own_key), "oidc_signature_wrong"),
    "altered": (signed_by(spoilt), "oidc_signature_wrong"),
    "no token at all": (signed_by(lambda *_: "a.b"), "oidc_token_malformed"),
    "huge": (signed_by(lambda *_: "a" * 40_000 + ".b.c"), "oidc_token_malformed"),
    "unknown kid": (header(kid="two"), "oidc_key_unknown"),
    "kid that is a path": (header(kid="../../one"), "oidc_key_unknown"),
    "re-keyed": (rekeyed, "oidc_signature_wrong"),
    "a key for something else": (published(use="enc"), "oidc_key_unknown"),
    "a key that may not verify": (published(key_ops=["encrypt"]), "oidc_key_unknown"),
    "a key for another algorithm": (published(alg="RS256"), "oidc_key_unknown"),
    "ES256 by an RSA key's name": (switched("ES256", lambda: RSA), "oidc_key_unknown"),
    "RS256 by an EC key's name": (switched("RS256", lambda: OTHER), "oidc_key_unknown"),
    "PS256 by a key for RS256": (switched("PS256", lambda: RSA, said="RS256"), "oidc_key_unknown"),
    "RS512": (switched("RS512", lambda: RSA), "oidc_algorithm_refused"),
    "two keys of one name": (
        lambda p: setattr(p, "jwks", {"keys": p.public()["keys"] * 2}), "oidc_key_ambiguous",
    ),
    "critical": (signed_by(with_its_own_rules), "oidc_signature_wrong"),
    "a logout token": (header(typ="logout+jwt"), "oidc_token_type_wrong"),
    "an access token": (header(typ="at+jwt"), "oidc_token_type_wrong"),
    "wrong issuer": (claims(iss="https://elsewhere.example"), "oidc_issuer_wrong"),
    "issuer with a slash": (claims(iss=lambda was: f"{was}/"), "oidc_issuer_wrong"),
    "no issuer": (claims(iss=None), "oidc_issuer_wrong"),
    "wrong audience": (claims(aud="another"), "oidc_audience_wrong"),
    "no audience": (claims(aud=None), "oidc_audience_wrong"),
    "for several": (claims(aud=[CLIENT, "another"]), "oidc_audience_wrong"),
    "for another party": (claims(azp="another"), "oidc_audience_wrong"),
    "ended": (claims(exp=lambda was: was - 361), "oidc_time_wrong"),
    "without an end": (claims(exp=None), "oidc_time_wrong"),
    "of tomorrow": (claims(iat=lambda was: was + 61), "oidc_time_wrong"),
    "of before the beginning": (claims(iat=lambda was: was - 61), "oidc_time_wrong"),
    "without a time": (claims(iat=None), "oidc_time_wrong"),
    "not yet": (claims(nbf=2_000_000_000), "oidc_time_wrong"),
    "a time that is a text": (claims(exp="9999999999"), "oidc_time_wrong"),
    "a time that is true": (claims(iat=True), "oidc_time_wrong"),
    "wrong nonce": (claims(nonce="guess"), "oidc_nonce_wrong"),
    "no nonce": (claims(nonce=None), "oidc_nonce_wrong"),
    "nobody": (claims(sub=None), "oidc_subject_missing"),
    "empty subject": (claims(sub=""), "oidc_subject_missing"),
    "subject of control characters": (claims(sub="a\nb"), "oidc_subject_missing"),
    "subject that is a list": (claims(sub=["anna"]), "oidc_subject_missing"),
    "proof of the future": (claims(auth_time=lambda was: was + 61), "oidc_time_wrong"),
}  # fmt: skip


def with_rsa(alg: str) -> Bend:
    def bend(provider: OpenIdProvider) -> None:
        provider.jwks = {"keys": [{**RSA.as_dict(private=False), "kid": alg}]}
        provider.header = {"alg": alg, "kid": alg}
        provider.sign = lambda header, payload: jws.serialize_compact(
            header, payload, RSA, algorithms=[alg]
        )

    return bend


#: Unusual and right.
RIGHT: Final[dict[str, Bend]] = {
    "as it is": claims(),
    "for several, by us": claims(aud=[CLIENT, "another"], azp=CLIENT),
    "clocks apart": claims(iat=lambda was: was + 59, exp=lambda was: was - 359 + 59),
    "starts in a moment": claims(nbf=lambda _: None),
    "no kid": header(kid=None),
    "RS256": with_rsa("RS256"),
    "PS256": with_rsa("PS256"),
}


@promise("people:provider-forged")
async def test_no_forged_token_signs_anybody_in(rest: Rest, provider: OpenIdProvider) -> None:
    wrong = []
    for name, (bend, reason) in FORGED.items():
        rest.clock.advance(301)  # another minute of limits; keys are fetched anew
        provider.straighten()
        bend(provider)
        browser = Browser(rest=rest)
        answer = await browser.sign_in(provider)
        check(answer, 401, "unauthenticated")
        assert SESSION not in browser.cookies, name
        if reason != (await failures(rest))[-1]:
            wrong.append((name, (await failures(rest))[-1]))

    assert [] == wrong
    assert len(FORGED) == len(await failures(rest))
    assert [] == [one for one in await rest.records() if one["type"] == "user.signin"]


async def test_what_is_only_unusual_signs_in(rest: Rest, provider: OpenIdProvider) -> None:
    statuses = {}
    for name, bend in RIGHT.items():
        rest.clock.advance(301)
        provider.straighten()
        bend(provider)
        statuses[name] = (await Browser(rest=rest).sign_in(provider)).status
    assert dict.fromkeys(RIGHT, 303) == statuses

    rest.clock.advance(301)
    provider.straighten()
    key = OKPKey.generate_key("Ed25519")
    provider.jwks = {"keys": [{**key.as_dict(private=False), "kid": "one"}]}
    provider.sign = lambda header, payload: _eddsa(key, header, payload)
    assert 303 == (await Browser(rest=rest).sign_in(provider)).status


def _eddsa(key: OKPKey, header: dict[str, Any], payload: bytes) -> str:
    parts = [orjson.dumps(header | {"alg": "EdDSA"}), payload]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    made = jws.JWSRegistry.algorithms["EdDSA"].sign(text, key)
    signature = base64.urlsafe_b64encode(made).rstrip(b"=")
    return (text + b"." + signature).decode()


@promise("people:provider-forged")
async def test_an_answer_that_is_not_the_one_we_asked_for_signs_nobody_in(
    rest: Rest, provider: OpenIdProvider
) -> None:
    """Replayed, stolen, mixed up, late, doubled, or of nobody."""

    async def back(browser: Browser, reason: str, **query: str) -> None:
        answer = await browser.get(CALLBACK, **query)
        check(answer, 401, "unauthenticated")
        assert (reason, False) == ((await failures(rest))[-1], SESSION in browser.cookies)

    victim, thief = Browser(rest=rest), Browser(rest=rest)
    location = await victim.begin()
    right = provider.consent(location)
    await back(thief, "oidc_other_browser", **right)  # a stolen answer in another browser
    await thief.begin()
    await back(thief, "oidc_other_browser", **right)  # and in one with a sign-in of its own
    for_thief = provider.consent(await thief.begin(), "mallory")
    await back(victim, "oidc_other_browser", **for_thief)  # login CSRF
    await back(victim, "oidc_state_unknown", **right | {"state": altered(right["state"])})
    await back(victim, "oidc_state_unknown", code=right["code"])
    assert 303 == (await victim.get(CALLBACK, **right)).status  # none of it used it up
    victim.cookies.pop(SESSION)
    await back(victim, "oidc_other_browser", **right)  # its cookie went with it

    browser = Browser(rest=rest)
    right = provider.consent(await browser.begin())
    kept = dict(browser.cookies)
    assert 303 == (await browser.get(CALLBACK, **right)).status
    browser.cookies = dict(kept)
    await back(browser, "oidc_state_used", **right)
    used = right["code"]
    rest.clock.advance(61)
    for reason, bent in (
        ("oidc_provider_answered_no", {"code": used}),
        ("oidc_provider_answered_no", {"code": "invented"}),
        ("oidc_issuer_mixed_up", {"iss": "https://elsewhere.example"}),
        ("oidc_issuer_mixed_up", {"iss": f"{provider.url}/"}),
        ("oidc_provider_refused", {"error": "access_denied"}),
        ("oidc_answer_malformed", {"code": ""}),
        ("oidc_answer_malformed", {"code": "x" * 5000}),
    ):
        rest.clock.advance(7)
        browser = Browser(rest=rest)
        right = provider.consent(await browser.begin())
        await back(browser, reason, **right | bent)
    browser = Browser(rest=rest)
    right = provider.consent(await browser.begin())
    right.pop("iss")
    await back(browser, "oidc_issuer_missing", **right)
    browser = Browser(rest=rest)
    right = provider.consent(await browser.begin())
    check(await browser.get(f"{CALLBACK}?state={right['state']}&state={right['state']}"), 401,
          "unauthenticated")  # fmt: skip
    rest.clock.advance(601)
    await back(browser, "oidc_state_expired", **right)
    right = provider.consent(await browser.begin())
    await signs_in_by(rest, provider.url)
    await back(browser, "oidc_settings_changed", **right)


async def test_a_code_of_another_sign_in_is_worth_nothing_in_this_one(
    rest: Rest, provider: OpenIdProvider
) -> None:
    """PKCE: the code was asked for with another browser's proof."""
    thief, victim = Browser(rest=rest), Browser(rest=rest)
    stolen = provider.consent(await victim.begin())["code"]
    own = provider.consent(await thief.begin())
    check(await thief.get(CALLBACK, **own | {"code": stolen}), 401, "unauthenticated")

    assert ["oidc_provider_answered_no"] == await failures(rest)


@promise("people:provider-keys-bounded")
async def test_invented_names_of_keys_cost_two_fetches_a_minute(
    rest: Rest, provider: OpenIdProvider
) -> None:
    """By sign-ins of a bent provider, and by logout tokens that anybody may send."""
    await Browser(rest=rest).sign_in(provider)
    rest.clock.advance(61)
    before = provider.fetches("/jwks")
    for number in range(12):
        provider.header = {"kid": f"invented-{number}"}
        check(await Browser(rest=rest).sign_in(provider), 401, "unauthenticated")
        check(await sent(rest, provider.logout_token(sub="anna")), 400, "invalid_argument")
    assert 2 == provider.fetches("/jwks") - before
    provider.straighten()
    assert 303 == (await Browser(rest=rest).sign_in(provider)).status  # known keys need no fetch
    rest.clock.advance(61)
    provider.key, provider.kid = ECKey.generate_key("P-256"), "next"

    assert 303 == (await Browser(rest=rest).sign_in(provider)).status


async def test_keys_that_are_known_serve_while_the_provider_gives_none(
    rest: Rest, provider: OpenIdProvider
) -> None:
    await Browser(rest=rest).sign_in(provider)
    rest.clock.advance(3_600)
    provider.jwks = {"keys": "nothing"}

    assert 303 == (await Browser(rest=rest).sign_in(provider)).status


async def test_nobody_is_led_elsewhere(rest: Rest, provider: OpenIdProvider) -> None:
    """By where to go afterwards, by the address to come back to, by a provider that redirects."""
    browser = Browser(rest=rest)
    for path in ("//elsewhere.example", "https://elsewhere.example", "/\\elsewhere.example",
                 "/approve/../x", "javascript:alert(1)", "/%0d%0aset-cookie: a=b", ""):  # fmt: skip
        check(await browser.get(LOGIN, return_to=path), 400, "invalid_filter")
    check(await browser.get(LOGIN, redirect_uri="https://elsewhere.example"), 400, "invalid_filter")
    page = "/approve/0199d0d0-0000-7000-8000-000000000001"
    location = await browser.begin(return_to=page)
    answer = await browser.get(CALLBACK, **provider.consent(location))
    assert (303, page) == (answer.status, answer.headers["location"])
    rest.clock.advance(61)
    right = provider.consent(await browser.begin())
    provider.away = 302
    check(await browser.get(CALLBACK, **right), 401, "unauthenticated")

    assert 0 == provider.fetches("/elsewhere")


#: What a provider says of itself.
MISLEADING: Final[tuple[dict[str, Any], ...]] = (
    {"issuer": "https://elsewhere.example"},
    {"token_endpoint": "http://elsewhere.example/token"},
    {"jwks_uri": "file:///etc/passwd"},
    {"authorization_endpoint": "http://10.0.0.1/"},
    {"code_challenge_methods_supported": ["plain"]},
    {"jwks_uri": "https://u:p@x.example/"},
)


async def test_a_provider_that_describes_itself_wrongly_is_not_used(
    rest: Rest, provider: OpenIdProvider
) -> None:
    for bent in MISLEADING:
        rest.clock.advance(61)
        provider.description = bent
        check(await Browser(rest=rest).get(LOGIN, tenant="default"), 503, "dependency_unavailable")
    assert len(MISLEADING) == len(await failures(rest))
    rest.clock.advance(61)
    provider.description = {}

    assert 302 == (await Browser(rest=rest).get(LOGIN, tenant="default")).status


async def test_a_machines_own_metadata_is_no_provider(rest: Rest) -> None:
    for issuer in ("https://169.254.169.254", "https://[fd00:ec2::254]"):
        await signs_in_by(rest, issuer)
        check(await Browser(rest=rest).get(LOGIN, tenant="default"), 503, "dependency_unavailable")

    assert ["oidc_provider_not_reachable"] * 2 == await failures(rest)


async def test_no_forged_logout_ends_a_session(rest: Rest, provider: OpenIdProvider) -> None:
    browser = Browser(rest=rest)
    await browser.sign_in(provider, sid="s1")
    cases: list[tuple[Bend, dict[str, Any]]] = [
        (signed_by(unsigned), {}),
        (signed_by(by_the_public_key), {}),
        (signed_by(by_another), {}),
        (claims(), {"aud": "another"}),
        (claims(), {"iss": "https://elsewhere.example"}),
        (claims(), {"events": {}}),
        (claims(), {"events": {LOGOUT: None}}),
        (claims(), {"nonce": "n"}),
        (claims(), {"jti": None}),
        (claims(), {"sub": None}),
        (claims(), {"iat": rest.clock.now_ns() // 10**9 - 200}),
        (claims(), {"iat": rest.clock.now_ns() // 10**9 + 61}),
        (header(typ="at+jwt"), {}),
    ]
    for bend, told in cases:
        provider.straighten()
        bend(provider)
        answer: Answered = await sent(rest, provider.logout_token(**{"sub": "anna", **told}))
        check(answer, 400, "invalid_argument")
    provider.straighten()
    id_token = provider.token({"iss": provider.url, "aud": CLIENT, "sub": "anna", "nonce": "n"})
    check(await sent(rest, id_token), 400, "invalid_argument")
    for junk in ("", "a.b.c", "x" * 50_000):
        check(await sent(rest, junk), 400, "invalid_argument")
    assert "anna" in (await browser.me())["name"]

    assert 200 == (await sent(rest, provider.logout_token(sub="anna"))).status
    check(await browser.get("/api/v1/me"), 401, "session_expired")


async def test_a_provider_of_another_tenant_signs_nobody_in_here(
    rest: Rest, provider: OpenIdProvider, other_key: str, clock: ManualClock
) -> None:
    """Nor does its word end a session here."""
    second = (await rest.get("/api/v1/me", key=other_key)).json["tenant"]["id"]
    async with openid_provider(clock) as other:
        await signs_in_by(rest, other.url, second)
        here, there = Browser(rest=rest), Browser(rest=rest)
        location = await here.begin(tenant="default")
        check(await here.get(CALLBACK, **other.consent(location)), 401, "unauthenticated")
        location = await here.begin(tenant="default")
        await here.get(CALLBACK, **provider.consent(location))
        location = await there.begin(tenant="second")
        await there.get(CALLBACK, **other.consent(location))
        assert (await here.me())["tenant"]["slug"] == "default"
        assert (await there.me())["tenant"]["slug"] == "second"
        assert (await here.me())["id"] != (await there.me())["id"]
        assert 200 == (await sent(rest, other.logout_token(sub="anna"))).status
        check(await there.get("/api/v1/me"), 401, "session_expired")

    assert "anna" in (await here.me())["name"]
