"""What an admin says of a tool server beside where it is: grants, time, sharing, headers, CA."""

from typing import Any

import asyncpg
import pytest

from tests.integration.control.conftest import Rest
from tests.integration.control.planes import fetch, plan, tenant_state, until_serial

URL = "https://tools.example/mcp"
SHIPPED = {
    "elicitation_form": True,
    "elicitation_hosts": [],
    "sampling": False,
    "roots": False,
    "extensions": [],
}
TASKS = "io.modelcontextprotocol/tasks"


async def add(rest: Rest, **more: Any) -> dict[str, Any]:
    return await rest.add_server(
        "files", **{"transport": "http", "urls": [URL], "stdio": None, **more}
    )


async def refused(rest: Rest, **more: Any) -> tuple[str, str]:
    body = {"slug": "files", "transport": "http", "urls": [URL], **more}
    answer = await rest.post("/api/v1/servers", body)
    assert 422 == answer.status, answer.body
    [error] = answer.json["errors"]
    return error["pointer"], error["code"]


async def in_bundle(rest: Rest) -> dict[str, Any]:
    plan(rest)
    await until_serial(rest, 1)
    told: dict[str, Any] = tenant_state(rest, (await fetch(rest)).body)["servers"]["files"]
    return told


async def test_a_server_of_which_nothing_is_said_gets_what_is_shipped(rest: Rest) -> None:
    made = await add(rest)

    assert (SHIPPED, 120, "agent", {}, "") == (
        made["grants"], made["first_byte_s"], made["share"], made["headers"], made["ca"],
    )  # fmt: skip


async def test_what_is_said_is_kept_changed_and_told_to_planes(rest: Rest) -> None:
    await add(
        rest,
        grants={"elicitation_hosts": ["pay.example"], "extensions": [TASKS]},
        first_byte_s=600,
        headers={"X-Region": "eu"},
        ca="secret://tools-ca",
    )
    changed = await rest.call(
        "PATCH",
        "/api/v1/servers/files",
        {"grants": {"sampling": True, "elicitation_form": False}, "headers": {"X-Team": "a b"}},
    )

    expected = {
        "grants": {
            "elicitation_form": False,
            "elicitation_hosts": ["pay.example"],
            "sampling": True,
            "roots": False,
            "extensions": [TASKS],
        },
        "first_byte_s": 600,
        "share": "agent",
        "headers": {"X-Team": "a b"},
        "ca": "secret://tools-ca",
    }
    assert expected == {name: changed.json[name] for name in expected}
    told = await in_bundle(rest)
    assert expected == {name: told[name] for name in expected}
    [changes] = [
        {entry["field"]: (entry.get("old"), entry.get("new")) for entry in record["changes"]}
        for record in await rest.records()
        if record["type"] == "admin.server.updated"
    ]
    assert {
        "grants.elicitation_form": (True, False),
        "grants.sampling": (False, True),
        "headers.X-Region": ("eu", None),
        "headers.X-Team": (None, "a b"),
    } == changes


async def test_a_row_of_before_these_columns_means_what_it_meant(rest: Rest) -> None:
    await add(rest)
    connection = await asyncpg.connect(rest.database.admin_dsn)
    await connection.execute(
        "UPDATE control.servers SET grants = DEFAULT, headers = DEFAULT, ca = DEFAULT,"
        " share = DEFAULT, first_byte_s = DEFAULT, credential_settings = DEFAULT"
        " WHERE slug = 'files'"
    )
    await connection.close()

    shown = (await rest.get("/api/v1/servers/files")).json
    changed = await rest.call("PATCH", "/api/v1/servers/files", {"grants": {"roots": True}})

    assert (SHIPPED, 120, "agent") == (shown["grants"], shown["first_byte_s"], shown["share"])
    assert {**SHIPPED, "roots": True} == changed.json["grants"]


WRONG: list[tuple[dict[str, Any], tuple[str, str]]] = [
    ({"grants": {"everything": True}}, ("/grants", "unknown_field")),
    ({"grants": {"sampling": "yes"}}, ("/grants/sampling", "not_a_boolean")),
    ({"grants": {"elicitation_hosts": ["*.example"]}}, ("/grants/elicitation_hosts/0", "pattern")),
    ({"grants": {"elicitation_hosts": ["https://a"]}}, ("/grants/elicitation_hosts/0", "pattern")),
    ({"grants": {"elicitation_hosts": ["a", "a"]}}, ("/grants/elicitation_hosts", "twice")),
    ({"grants": {"extensions": ["tasks"]}}, ("/grants/extensions/0", "pattern")),
    ({"first_byte_s": 0}, ("/first_byte_s", "too_small")),
    ({"first_byte_s": 601}, ("/first_byte_s", "too_large")),
    ({"share": "everybody"}, ("/share", "not_allowed")),
    ({"share": "server"}, ("/share", "only_for_stdio")),
    ({"ca": "/etc/ssl/ca.pem"}, ("/ca", "pattern")),
    ({"ca": "secret://ca", "urls": ["http://a/"]}, ("/ca", "needs_https")),
    (
        {"transport": "stdio", "stdio": "x", "urls": [], "ca": "secret://a"},
        ("/ca", "not_for_stdio"),
    ),
    (
        {"transport": "stdio", "stdio": "x", "urls": [], "headers": {"X-A": "b"}},
        ("/headers", "not_for_stdio"),
    ),
    ({"headers": {"X-A": "1", "x-a": "2"}}, ("/headers", "twice")),
    ({"headers": {f"X-{n}": "1" for n in range(17)}}, ("/headers", "too_many")),
    ({"headers": {"X A": "1"}}, ("/headers", "name")),
    ({"headers": {"X-A": "a\r\nb: c"}}, ("/headers", "value")),
    ({"headers": {"X-A": ""}}, ("/headers", "value")),
    ({"headers": {"X-A": "ä"}}, ("/headers", "value")),
    ({"headers": {"X-A": "a" * 257}}, ("/headers", "value")),
    ({"headers": {"X-A": "secret://a"}}, ("/headers", "secret")),
    (
        {
            "headers": {"x-a": "b"},
            "credential": {"kind": "header", "name": "X-A", "value": "secret://a"},
        },
        ("/headers", "twice"),
    ),
]


async def test_what_cannot_be_is_refused_where_it_stands(rest: Rest) -> None:
    for said, expected in WRONG:
        assert expected == await refused(rest, **said), said


async def test_a_header_that_is_not_the_admins_is_refused(rest: Rest) -> None:
    for name in ("Host", "Content-Type", "content-length", "Mcp-Session-Id", "MCP-Protocol-Version",
                 "Connection", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade",
                 "Proxy-Authorization", "Accept", "Accept-Encoding", "User-Agent", "traceparent",
                 "tracestate", "baggage", "Forwarded", "X-Forwarded-For", "X-Requester-Id",
                 "Last-Event-ID"):  # fmt: skip
        assert ("/headers", "header") == await refused(rest, headers={name: "x"}), name
    for name in ("Authorization", "Cookie", "X-Api-Key", "X_Auth_Token", "Client-Secret"):
        assert ("/headers", "secret") == await refused(rest, headers={name: "x"}), name


@pytest.mark.parametrize("share", ["agent", "server"])
async def test_a_program_may_be_shared(rest: Rest, share: str) -> None:
    made = await rest.add_server("time", share=share)

    assert share == made["share"]
