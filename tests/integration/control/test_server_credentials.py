"""How a plane proves itself to a tool server, as an admin says it: each kind, and what none may
hold.
"""

from typing import Any

from tests.integration.control.conftest import Rest
from tests.integration.control.planes import fetch, plan, tenant_state, until_serial

URL = "https://tools.example/mcp"
TOKEN_URL = "https://auth.example/token"
CLIENT = {
    "kind": "client_credentials",
    "token_url": TOKEN_URL,
    "client_id": "gate",
    "client_secret": "secret://gate",
}
BEARER = {
    "kind": "jwt_bearer",
    "token_url": TOKEN_URL,
    "key": "secret://key",
    "issuer": "gate@tools.example",
}
EXCHANGE = {**BEARER, "kind": "token_exchange"}
MTLS = {"kind": "mtls", "certificate": "secret://gate.crt", "key": "secret://gate.key"}
ASKED = {
    "scope": "tools.read tools.write",
    "resource": URL,
    "audience": "tools",
    "token_ca": "secret://auth-ca",
    "client_auth": "post",
}
KINDS: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "header", "name": "X-Key", "value": "secret://files"},
    CLIENT,
    {**CLIENT, **ASKED},
    {**CLIENT, "token_url": "http://127.0.0.1:9/token"},
    {**CLIENT, "token_url": "http://[::1]:9/token"},
    BEARER,
    {
        **BEARER, **ASKED, "key_id": "k1", "subject": "robot", "client_id": "gate",
        "client_secret": "secret://gate", "claims": {"tier": "gold", "level": 3, "beta": True},
    },
    EXCHANGE,
    {**EXCHANGE, **ASKED, "key_id": "k1", "client_id": "gate"},
    MTLS,
]  # fmt: skip


async def add(rest: Rest, credential: dict[str, Any], **more: Any) -> Any:
    body = {"slug": "files", "transport": "http", "urls": [URL], "credential": credential, **more}
    return await rest.post("/api/v1/servers", body)


async def test_each_kind_is_shown_as_it_was_said_and_told_to_planes(rest: Rest) -> None:
    for number, credential in enumerate(KINDS):
        made = await add(rest, credential, slug=f"s{number}")
        assert 201 == made.status, made.body
        assert credential == made.json["credential"]
    plan(rest)
    await until_serial(rest, 1)
    told = tenant_state(rest, (await fetch(rest)).body)["servers"]

    assert KINDS == [told[f"s{number}"]["credential"] for number in range(len(KINDS))]


async def test_one_kind_takes_the_place_of_another_whole(rest: Rest) -> None:
    await add(rest, {**CLIENT, **ASKED})
    seen = []
    for credential in (MTLS, {"kind": "header", "name": "X-Key", "value": "secret://a"}, BEARER):
        changed = await rest.call("PATCH", "/api/v1/servers/files", {"credential": credential})
        seen.append((credential, changed.json["credential"]))

    assert [] == [(said, shown) for said, shown in seen if said != shown]
    updates = [r for r in await rest.records() if r["type"] == "admin.server.updated"]
    fields = {entry["field"]: entry for entry in updates[0]["changes"]}
    assert {"old": "client_credentials", "new": "mtls"} == {
        key: fields["credential_kind"][key] for key in ("old", "new")
    }
    assert "secret://gate" == fields["credential_settings.client_secret"]["old"]


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no kind": ({}, "/credential", "missing"),
    "an unknown kind": ({"kind": "kerberos"}, "/credential", "not_allowed"),
    "a login of each user": (
        {"kind": "user_login", "authorize_url": "https://a"},
        "/credential/kind",
        "unsupported_credential",
    ),
    "an authorization code": (
        {"kind": "authorization_code"}, "/credential/kind", "unsupported_credential",
    ),
    "a secret itself": (
        {**CLIENT, "client_secret": "hunter2-hunter2"}, "/credential/client_secret", "pattern",
    ),
    "a secret key itself": (
        {**BEARER, "key": "-----BEGIN PRIVATE KEY-----hunter2"}, "/credential/key", "pattern",
    ),
    "a certificate by its path": (
        {**MTLS, "certificate": "/etc/ssl/hunter2.crt"}, "/credential/certificate", "pattern",
    ),
    "no secret": ({**CLIENT, "client_secret": ""}, "/credential/client_secret", "pattern"),
    "no key of a certificate": (
        {"kind": "mtls", "certificate": "secret://a"}, "/credential/key", "missing",
    ),
    "an endpoint in the clear": (
        {**CLIENT, "token_url": "http://auth.example/token"}, "/credential/token_url", "url",
    ),
    "an endpoint with a user": (
        {**CLIENT, "token_url": "https://u:p@auth.example/"}, "/credential/token_url", "url",
    ),
    "an endpoint that is no URL": (
        {**BEARER, "token_url": "auth.example"}, "/credential/token_url", "url",
    ),
    "a secret of nobody": (
        {**BEARER, "client_secret": "secret://a"}, "/credential/client_id", "missing",
    ),
    "a claim that is the plane's": (
        {**BEARER, "claims": {"exp": 1}}, "/credential/claims", "reserved",
    ),
    "a claim that is a tree": ({**BEARER, "claims": {"a": {}}}, "/credential/claims", ""),
    "too many claims": (
        {**BEARER, "claims": {f"c{n}": "x" for n in range(17)}}, "/credential/claims", "too_many",
    ),
    "a scope of two lines": ({**CLIENT, "scope": "a\nb"}, "/credential/scope", "pattern"),
    "a very long scope": ({**CLIENT, "scope": "a" * 1025}, "/credential/scope", "too_long"),
    "a field of another kind": (
        {**CLIENT, "key": "secret://a"}, "/credential/key", "unknown_field",
    ),
    "a way to prove it that is none": (
        {**CLIENT, "client_auth": "query"}, "/credential/client_auth", "not_allowed",
    ),
}  # fmt: skip


async def test_what_cannot_be_a_credential_is_refused_where_it_stands(rest: Rest) -> None:
    for name, (said, pointer, code) in REFUSED.items():
        answer = await add(rest, said)
        assert 422 == answer.status, name
        first = answer.json["errors"][0]
        assert pointer == first["pointer"], name
        assert code in {"", first["code"]}, (name, first)
        assert b"hunter2" not in answer.body


async def test_what_looks_like_a_secret_would_stop_every_bundle(rest: Rest) -> None:
    look = "AKIA" + "Z" * 16
    cases: list[tuple[dict[str, Any], str]] = [
        ({"credential": {**CLIENT, "client_id": look}}, "/credential/client_id"),
        ({"credential": {**BEARER, "claims": {"a": look}}}, "/credential/claims"),
        ({"headers": {"X-Region": f"x {look}"}}, "/headers"),
        ({"urls": [f"https://tools.example/mcp?a={look}"]}, "/urls"),
    ]
    for said, pointer in cases:
        body = {"credential": {"kind": "none"}, **said}
        answer = await add(rest, **body)
        assert (422, pointer, "secret") == (
            answer.status, answer.json["errors"][0]["pointer"], answer.json["errors"][0]["code"],
        )  # fmt: skip
        assert look not in answer.body.decode()


async def test_a_certificate_is_shown_over_tls_alone(rest: Rest) -> None:
    answer = await add(rest, MTLS, urls=[URL, "http://tools.example/mcp"])
    later = await add(rest, MTLS)
    changed = await rest.call(
        "PATCH", "/api/v1/servers/files", {"urls": ["http://tools.example/mcp"]}
    )

    assert [("/credential", "needs_https")] * 2 == [
        (one.json["errors"][0]["pointer"], one.json["errors"][0]["code"])
        for one in (answer, changed)
    ]
    assert 201 == later.status


async def test_a_program_has_no_credential(rest: Rest) -> None:
    for credential in (CLIENT, BEARER, EXCHANGE, MTLS):
        answer = await add(rest, credential, transport="stdio", stdio="files", urls=[])
        assert (422, "/credential", "not_for_stdio") == (
            answer.status, answer.json["errors"][0]["pointer"], answer.json["errors"][0]["code"],
        )  # fmt: skip
        assert "stdio.toml" in answer.json["detail"]
