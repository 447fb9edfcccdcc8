"""Agents trade their secret for a token, and what every other try gets."""

import base64
import json
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from tests.integration.control.conftest import PUBLIC, Rest
from tests.promises import promise

PROXY = "http://127.0.0.1:8700"
OTHER = "00000000-0000-7000-8000-000000000000"


@pytest.fixture
async def agent(rest: Rest) -> dict[str, Any]:
    await rest.add_role("time:read", "time:read")
    return await rest.add_agent(roles=["time:read"])


def credentials(agent: dict[str, Any]) -> dict[str, str]:
    return {"client_id": agent["client_id"], "client_secret": agent["client_secret"]}


async def claims(rest: Rest, token: str) -> dict[str, Any]:
    """As a checker reads them: the published key set, RS256 alone."""
    keys = KeySet.import_key_set((await rest.get("/.well-known/jwks.json", key=None)).json)
    return jwt.decode(token, keys, algorithms=["RS256"]).claims


async def test_a_secret_is_traded_for_a_token_that_the_published_keys_check(
    rest: Rest, agent: dict[str, Any]
) -> None:
    answer = await rest.token(**credentials(agent))

    assert 200 == answer.status
    assert "no-store" == answer.headers["cache-control"]
    body = answer.json
    assert ("Bearer", 900, agent["id"], "low") == (
        body["token_type"], body["expires_in"], body["agent_id"], body["risk_tier"],
    )  # fmt: skip
    said = await claims(rest, body["access_token"])
    now = rest.clock.now_ns() // 10**9
    assert {
        "iss": PUBLIC,
        "sub": agent["id"],
        "tid": rest.running.tenant.id,
        "sid": body["session_id"],
        "jti": said["jti"],
        "aud": "behavry:dp:dp-local",
        "iat": now,
        "nbf": now,
        "exp": now + 900,
        "cls": "default",
        "roles": ["time:read"],
        "permissions": ["time:read"],
        "risk_tier": "low",
    } == said


async def test_the_secret_may_come_by_basic_too(rest: Rest, agent: dict[str, Any]) -> None:
    pair = f"{agent['client_id']}:{agent['client_secret']}"
    header = f"Basic {base64.b64encode(pair.encode()).decode()}"
    answer = await rest.call(
        "POST",
        "/api/v1/auth/token",
        data={"grant_type": "client_credentials"},
        headers={"authorization": header},
    )

    assert 200 == answer.status


RESOURCES = [
    (f"{PROXY}/mcp/v1/time", f"{PROXY}/mcp/v1/time"),
    ("http://localhost:8700/mcp/v1/time/key", f"{PROXY}/mcp/v1/time/key"),
    (f"{PROXY}/mcp/v1/time/", None),
    (f"{PROXY}/mcp/v1/time#f", None),
    (f"{PROXY}/mcp/v1/time?q=1", None),
    (f"{PROXY}/elsewhere", None),
    ("http://127.0.0.1:8799/mcp/v1/time", None),
    ("https://127.0.0.1:8700/mcp/v1/time", None),
    ("http://evil.example/mcp/v1/time", None),
    ("http://user@127.0.0.1:8700/mcp/v1/time", None),
    ("http://[", None),
]


async def test_a_resource_is_one_of_our_endpoints_or_refused(
    rest: Rest, agent: dict[str, Any]
) -> None:
    for resource, audience in RESOURCES:
        answer = await rest.token(**credentials(agent), resource=resource)
        if audience is None:
            assert (400, "invalid_target") == (answer.status, answer.json["error"]), resource
        else:
            assert audience == (await claims(rest, answer.json["access_token"]))["aud"]


async def test_a_renewal_keeps_the_session(rest: Rest, agent: dict[str, Any]) -> None:
    first = (await rest.token(**credentials(agent))).json
    rest.clock.advance(7 * 3600)
    second = (await rest.token(**credentials(agent), session=first["session_id"])).json

    assert first["session_id"] == second["session_id"]
    assert first["access_token"] != second["access_token"]


async def test_a_session_without_renewal_ends_after_eight_hours(
    rest: Rest, agent: dict[str, Any]
) -> None:
    first = (await rest.token(**credentials(agent))).json
    rest.clock.advance(8 * 3600 + 1)
    answer = await rest.token(**credentials(agent), session=first["session_id"])

    assert (400, "invalid_grant") == (answer.status, answer.json["error"])


async def test_another_agents_session_cannot_be_renewed(rest: Rest, agent: dict[str, Any]) -> None:
    other = await rest.add_agent("two")
    first = (await rest.token(**credentials(agent))).json
    for session in (first["session_id"], OTHER, "not-a-uuid"):
        answer = await rest.token(**credentials(other), session=session)
        assert (400, "invalid_grant") == (answer.status, answer.json["error"])


async def test_an_agent_has_at_most_a_hundred_live_sessions(
    rest: Rest, agent: dict[str, Any]
) -> None:
    first = None
    for _ in range(100):
        rest.clock.advance(2.1)
        answer = await rest.token(**credentials(agent))
        assert 200 == answer.status, answer.body
        first = first or answer.json["session_id"]
    rest.clock.advance(2.1)
    refused = await rest.token(**credentials(agent))
    assert (429, "session_limit") == (refused.status, refused.json["error"])

    assert 200 == (await rest.token(**credentials(agent), session=first or "")).status


WRONG = [
    ({"grant_type": "password"}, 400, "unsupported_grant_type"),
    ({"grant_type": "made-up"}, 400, "unsupported_grant_type"),
    ({"client_secret": "wrong-one"}, 401, "invalid_client"),
    ({"client_secret": ""}, 401, "invalid_client"),
    ({"client_id": OTHER}, 401, "invalid_client"),
    ({"client_id": "somebody"}, 401, "invalid_client"),
    ({"client_id": "\0"}, 400, "invalid_request"),
    ({"surprise": "planted"}, 400, "invalid_request"),
    ({"client_secret": "x" * 3000}, 400, "invalid_request"),
]


async def test_what_is_wrong_with_a_form_is_said_as_oauth_does(
    rest: Rest, agent: dict[str, Any]
) -> None:
    for form, status, error in WRONG:
        answer = await rest.token(**{**credentials(agent), **form})
        assert (status, error) == (answer.status, answer.json["error"]), form
        assert {"error", "error_description"} == answer.json.keys()
        assert not any(len(v) > 3 and v in answer.body.decode() for v in form.values()), form


async def test_json_two_secrets_and_a_doubled_parameter_are_refused(
    rest: Rest, agent: dict[str, Any]
) -> None:
    path = "/api/v1/auth/token"
    body = {"grant_type": "client_credentials", **credentials(agent)}
    twice = "grant_type=client_credentials&client_id=a&client_id=b"
    basic = f"Basic {base64.b64encode(b'a:b').decode()}"
    form = {"content-type": "application/x-www-form-urlencoded"}
    answers = [
        await rest.post(path, body, key=None),
        await rest.call("POST", path, data=twice, headers=form, key=None),
        await rest.call("POST", path, data=body, headers={"authorization": basic}),
        await rest.call("POST", path, data="%%%", headers=form, key=None),
    ]

    assert [(400, "invalid_request")] * 4 == [(a.status, a.json["error"]) for a in answers]


@promise("tokens:limited")
async def test_ten_failures_close_the_door_for_that_client_and_address(
    rest: Rest, agent: dict[str, Any]
) -> None:
    other = await rest.add_agent("two")
    wrong = {**credentials(agent), "client_secret": "wrong"}
    tries = [await rest.token(**wrong) for _ in range(10)]
    assert {401} == {answer.status for answer in tries}

    refused = await rest.token(**credentials(agent))
    assert (429, "rate_limited") == (refused.status, refused.json["error"])
    assert 1 <= int(refused.headers["retry-after"]) <= 300
    assert 200 == (await rest.token(**credentials(other))).status

    rest.clock.advance(301)
    assert 200 == (await rest.token(**credentials(agent))).status


@promise("tokens:limited")
async def test_thirty_tokens_a_minute_are_enough_for_one_client(
    rest: Rest, agent: dict[str, Any]
) -> None:
    answers = [await rest.token(**credentials(agent)) for _ in range(31)]

    assert [200] * 30 + [429] == [answer.status for answer in answers]
    rest.clock.advance(61)
    assert 200 == (await rest.token(**credentials(agent))).status


async def test_failed_tries_are_recorded_without_the_secret(
    rest: Rest, agent: dict[str, Any]
) -> None:
    await rest.token(**{**credentials(agent), "client_secret": "planted-guess"})
    await rest.token(client_id=OTHER, client_secret="planted-guess")

    failed = [r for r in await rest.records() if r["type"] == "user.signin_failed"]
    assert [("agent", "admin"), ("unknown", "system")] == [
        (record["actor"]["kind"], record["chain"]) for record in failed
    ]
    assert "planted-guess" not in json.dumps(await rest.records())


async def test_the_key_set_is_cached_by_its_tag(rest: Rest) -> None:
    first = await rest.get("/.well-known/jwks.json", key=None)
    again = await rest.get(
        "/.well-known/jwks.json", key=None, headers={"if-none-match": first.headers["etag"]}
    )

    assert "public, max-age=300" == first.headers["cache-control"]
    [key] = first.json["keys"]
    assert {"kty", "n", "e", "kid", "use", "alg"} == key.keys()
    assert 304 == again.status


async def test_the_metadata_names_client_credentials_alone(rest: Rest) -> None:
    metadata = (await rest.get("/.well-known/oauth-authorization-server", key=None)).json

    assert PUBLIC == metadata["issuer"]
    assert ["client_credentials"] == metadata["grant_types_supported"]
    assert "authorization_endpoint" not in metadata
