"""What decides a sign-in by a provider, without a provider: roles, what goes along, whose word
counts.
"""

from __future__ import annotations

import itertools
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import pytest
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from services.control.oidc import flow, providers, tokens
from services.control.oidc.configuration import Configuration, role_of
from services.control.oidc.flow import NotSignedIn, Transaction
from services.control.roles import Role

ISSUER: Final = "https://login.example"
DESCRIPTION: Final[dict[str, Any]] = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize?tenant=1",
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": f"{ISSUER}/jwks",
}


def configuration(**more: Any) -> Configuration:
    said: dict[str, Any] = {
        "issuer": ISSUER, "client_id": "behavry", "client_secret": None, "scopes": ["openid"],
        "role_claim": "groups", "just_in_time": True, "email_domains": [],
        "roles": [{"value": "chiefs", "role": "admin"}, {"value": "staff", "role": "analyst"}],
        **more,
    }  # fmt: skip
    return Configuration.of({"oidc": said}, revision=1)


def test_no_plan_that_ended_and_no_claim_gives_more_than_there_was() -> None:
    """Every claim, every role before, every mode."""
    claims: list[dict[str, Any]] = [{}, {"groups": "staff"}, {"groups": ["chiefs"]}]
    modes = ("on", "frozen", "tightened", "kept", "stopped", "off")
    for told, given, mode in itertools.product(claims, [None, *Role], modes):
        role = role_of(configuration(), told, given=given, teams=mode)
        if mode == "on":
            assert configuration().mapped(told) == role
        elif mode == "off":
            assert Role.VIEWER == role
        else:
            assert role <= (given or Role.VIEWER)


def test_without_a_claim_to_read_roles_are_given_here() -> None:
    none = configuration(role_claim=None)
    for given in Role:
        assert given == role_of(none, {"groups": "chiefs"}, given=given, teams="on")
    assert Role.VIEWER == role_of(none, {}, given=None, teams="on")


def test_what_hangs_on_a_browser_cannot_be_made_from_what_others_see() -> None:
    one = Transaction.new()
    same_state = Transaction(state=one.state, browser=Transaction.new().browser)
    same_browser = Transaction(state=Transaction.new().state, browser=one.browser)
    for other in (same_state, same_browser):
        assert not {one.nonce, one.verifier} & {other.nonce, other.verifier}
    assert one.nonce != one.verifier
    assert 43 == len(one.verifier)

    assert one.nonce == Transaction(state=one.state, browser=one.browser).nonce
    assert one.browser not in repr(one)
    assert one.state not in repr(one)


def test_the_browser_is_sent_along_with_a_challenge_and_never_with_the_proof() -> None:
    transaction = Transaction.new()
    endpoint = DESCRIPTION["authorization_endpoint"]
    url = flow.authorization_url(
        endpoint, configuration(), transaction, public_url="https://c.example", again=True
    )
    asked = dict(parse_qsl(urlsplit(url).query))
    assert transaction.verifier not in url
    assert transaction.browser not in url

    assert ("1", "https://c.example/api/v1/auth/callback", "login", "0") == (
        asked["tenant"], asked["redirect_uri"], asked["prompt"], asked["max_age"]
    )  # fmt: skip


def test_cookies_of_a_sign_in_are_out_of_reach() -> None:
    assert (
        "__Host-behavry-provider=x; Path=/; Max-Age=600; HttpOnly; SameSite=Lax; Secure"
        == flow.cookie("x", secure=True)
    )
    assert "Max-Age=0" in flow.cookie("", secure=False)


@pytest.mark.parametrize(
    ("found", "promised", "reason"),
    [({"code": "c"}, True, "oidc_issuer_missing"),
     ({"code": "c", "iss": "https://other.example"}, False, "oidc_issuer_mixed_up"),
     ({"error": "access_denied", "iss": ISSUER}, True, "oidc_provider_refused"),
     ({"iss": ISSUER}, True, "oidc_answer_malformed")],
)  # fmt: skip
def test_an_answer_of_whoever_is_not_ours_is_none(
    found: dict[str, str], promised: bool, reason: str
) -> None:
    with pytest.raises(NotSignedIn) as refused:
        flow.returned(found, configuration(), issuer_promised=promised)
    assert reason == refused.value.reason

    assert "c" == flow.returned({"code": "c"}, configuration(), issuer_promised=False).code


def test_a_key_set_gives_public_keys_that_sign_and_no_others() -> None:
    def public(key: Any) -> dict[str, Any]:
        told: dict[str, Any] = key.as_dict(private=False)
        return told

    rsa, ec = RSAKey.generate_key(2048), ECKey.generate_key("P-256")
    good = [public(rsa), public(ec), public(OKPKey.generate_key("Ed25519"))]
    bad: list[dict[str, Any]] = [
        OctKey.generate_key(256).as_dict(private=True),
        public(ECKey.generate_key("P-384")),
        public(OKPKey.generate_key("X25519")),
        public(rsa) | {"use": "enc"},
        public(rsa) | {"alg": "HS256"},
        public(rsa) | {"n": "AQAB"},
        public(ec) | {"x": "AA"},
        {"kty": "RSA"},
        {},
    ]

    assert all(tokens.usable(one) for one in good)
    assert [None] * len(bad) == [tokens.usable(one) for one in bad]


@pytest.mark.parametrize(
    "bent",
    [{"issuer": f"{ISSUER}/"}, {"issuer": None}, {"token_endpoint": None},
     {"token_endpoint": "http://login.example/token"}, {"jwks_uri": "//login.example/jwks"},
     {"jwks_uri": "https://login.example/jwks#x"}, {"jwks_uri": "https://a b.example/"},
     {"jwks_uri": "https://x.example:port/"}, {"code_challenge_methods_supported": ["plain"]}],
)  # fmt: skip
def test_a_description_that_is_not_of_this_issuer_or_lacks_something_is_refused(
    bent: dict[str, Any],
) -> None:
    with pytest.raises(NotSignedIn):
        providers.described(DESCRIPTION | bent, ISSUER)

    assert f"{ISSUER}/token" == providers.described(DESCRIPTION, ISSUER).token_endpoint


@pytest.mark.parametrize(
    ("methods", "in_form"),
    [(None, False), (["client_secret_post"], True),
     (["client_secret_post", "client_secret_basic"], False), (["none"], False)],
)  # fmt: skip
def test_a_secret_is_shown_as_the_provider_wants_it(methods: Any, in_form: bool) -> None:
    told = DESCRIPTION | {"token_endpoint_auth_methods_supported": methods}

    assert in_form == providers.described(told, ISSUER).secret_in_form
