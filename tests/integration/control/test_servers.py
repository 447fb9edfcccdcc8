"""Tool servers, and the tools that planes see on them."""

from typing import Any

import asyncpg

from services.common.ids import ServerSlug
from tests.integration.control.conftest import Rest
from tests.promises import promise

URL = "https://tools.example/mcp"
HASH = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


async def see(rest: Rest, *tools: str, server: str = "time", hash_: str = HASH) -> None:
    definition = b'{"inputSchema":{},"name":"x"}'
    seen = [(tool, hash_, definition) for tool in tools]
    await rest.running.tool_inbox.tools_seen(rest.running.tenant.id, ServerSlug(server), seen)


async def state_of(rest: Rest, tool: str) -> dict[str, Any]:
    items = (await rest.get("/api/v1/servers/time/tools")).json["items"]
    [found] = [item for item in items if item["name"] == tool]
    assert isinstance(found, dict)
    return found


async def test_a_server_is_made_read_changed_and_deleted(rest: Rest) -> None:
    made = await rest.add_server("files", transport="http", urls=[URL], stdio=None,
                                 credential={"kind": "header", "name": "X-Key",
                                             "value": "secret://files"})  # fmt: skip
    assert ("files", "untrusted", "auto") == (made["domain"], made["trust"], made["era"])
    by_id = await rest.get(f"/api/v1/servers/{made['id']}")
    assert made == by_id.json
    changed = await rest.call(
        "PATCH",
        "/api/v1/servers/files",
        {"trust": "trusted", "credential": {"kind": "none"}},
        headers={"if-match": by_id.headers["etag"]},
    )

    assert ("trusted", {"kind": "none"}, [URL]) == (
        changed.json["trust"], changed.json["credential"], changed.json["urls"],
    )  # fmt: skip
    stale = await rest.call(
        "PATCH", "/api/v1/servers/files", {}, headers={"if-match": by_id.headers["etag"]}
    )
    assert 412 == stale.status
    assert 204 == (await rest.call("DELETE", "/api/v1/servers/files")).status
    assert 404 == (await rest.get("/api/v1/servers/files")).status
    types = [r["type"] for r in await rest.records() if r["type"].startswith("admin.server")]
    assert ["admin.server.created", "admin.server.updated", "admin.server.deleted"] == types


async def test_a_slug_is_unique_and_some_are_reserved(rest: Rest) -> None:
    await rest.add_server("time")
    body = {"transport": "stdio", "stdio": "time"}
    taken = await rest.post("/api/v1/servers", {"slug": "time", **body})
    assert 409 == taken.status

    for slug in ("key", "all", "-x", "x-", "X", "", "a" * 41, "a/b", "a b", "ä"):
        answer = await rest.post("/api/v1/servers", {"slug": slug, **body})
        assert (422, "/slug") == (answer.status, answer.json["errors"][0]["pointer"]), slug
    assert 201 == (await rest.post("/api/v1/servers", {"slug": "a" * 40, **body})).status


UNREACHABLE: list[tuple[dict[str, Any], str]] = [
        ({"transport": "http", "urls": []}, "/urls"),
        ({"transport": "http", "urls": [URL, URL]}, "/urls"),
        ({"transport": "http", "urls": [f"{URL}/{n}" for n in range(9)]}, "/urls"),
        ({"transport": "http", "urls": ["ftp://a/b"]}, "/urls/0"),
        ({"transport": "http", "urls": [URL, "http://user:pw@a/b"]}, "/urls/1"),
        ({"transport": "http", "urls": ["http://a/b#c"]}, "/urls/0"),
        ({"transport": "http", "urls": ["http://"]}, "/urls/0"),
        ({"transport": "http", "urls": ["http://a:99999/"]}, "/urls/0"),
        ({"transport": "http", "urls": ["http://a/\u0001"]}, "/urls/0"),
        ({"transport": "http", "urls": [URL], "stdio": "x"}, "/stdio"),
        ({"transport": "stdio"}, "/stdio"),
        ({"transport": "stdio", "stdio": "x", "urls": [URL]}, "/urls"),
        ({"transport": "stdio", "stdio": "rm -rf /"}, "/stdio"),
        ({"transport": "pigeon"}, "/transport"),
        ({"transport": "http", "urls": [URL], "trust": "very"}, "/trust"),
        ({"transport": "stdio", "stdio": "x", "credential": {"kind": "header", "name": "X-Key",
          "value": "secret://a"}}, "/credential"),
]  # fmt: skip


async def test_a_server_that_cannot_be_reached_is_refused(rest: Rest) -> None:
    for reach, pointer in UNREACHABLE:
        answer = await rest.post("/api/v1/servers", {"slug": "x", **reach})
        assert 422 == answer.status, reach
        assert pointer == answer.json["errors"][0]["pointer"], reach


async def test_a_secret_itself_is_never_taken(rest: Rest) -> None:
    for value in ("hunter2-hunter2", "secret://", "secret://../etc/passwd", ""):
        credential = {"kind": "header", "name": "X-Key", "value": value}
        body = {"slug": "x", "transport": "http", "urls": [URL], "credential": credential}
        answer = await rest.post("/api/v1/servers", body)
        assert 422 == answer.status
        assert not value or value not in answer.body.decode()


async def test_a_credential_stays_out_of_the_transports_headers(rest: Rest) -> None:
    for name in ("Host", "content-length", "Mcp-Session-Id", "a b", "x:y", ""):
        credential = {"kind": "header", "name": name, "value": "secret://a"}
        body = {"slug": "x", "transport": "http", "urls": [URL], "credential": credential}
        assert 422 == (await rest.post("/api/v1/servers", body)).status, name


async def test_a_new_tool_is_unclassified_until_somebody_says_what_it_does(rest: Rest) -> None:
    await rest.add_server()
    await see(rest, "now")
    new = await state_of(rest, "now")
    answer = await rest.put(
        "/api/v1/servers/time/tools/now", {"action": "read", "category": "clock"}
    )

    assert ("unclassified", None, HASH) == (
        new["state"], new["schema_hash"], new["seen_schema_hash"],
    )  # fmt: skip
    assert {"inputSchema": {}, "name": "x"} == new["definition"]
    assert 200 == answer.status
    assert ("approved", "read", "clock", HASH) == (
        answer.json["state"], answer.json["action"], answer.json["category"],
        answer.json["schema_hash"],
    )  # fmt: skip


@promise("tools:another-definition-hides")
async def test_another_definition_hides_the_tool_again_and_is_recorded(rest: Rest) -> None:
    await rest.add_server()
    await see(rest, "now", "then")
    await rest.put("/api/v1/servers/time/tools/now", {"action": "read"})
    signals = rest.running.control.signals
    before = signals.changes
    await see(rest, "now", "then")
    assert (before, "approved") == (signals.changes, (await state_of(rest, "now"))["state"])

    await see(rest, "now", "then", hash_=OTHER)
    assert "changed" == (await state_of(rest, "now"))["state"]
    assert "unclassified" == (await state_of(rest, "then"))["state"]
    assert before + 1 == signals.changes
    assert 1 == len([r for r in await rest.records() if r["type"] == "admin.tool.changed"])

    await see(rest, "now")  # the old definition comes back: nobody has looked at it yet
    assert "changed" == (await state_of(rest, "now"))["state"]
    await rest.put("/api/v1/servers/time/tools/now", {"action": "read"})
    assert "approved" == (await state_of(rest, "now"))["state"]


async def test_what_was_looked_at_must_still_be_what_is_there(rest: Rest) -> None:
    await rest.add_server()
    await see(rest, "now")
    path = "/api/v1/servers/time/tools/now"
    old = await rest.put(path, {"action": "read", "schema_hash": OTHER})
    same = await rest.put(path, {"action": "read", "schema_hash": HASH})

    assert [(409, "conflict"), (200, None)] == [
        (answer.status, answer.json.get("code")) for answer in (old, same)
    ]


async def test_a_tool_nobody_saw_needs_its_hash(rest: Rest) -> None:
    await rest.add_server()
    path = "/api/v1/servers/time/tools/later"
    assert 404 == (await rest.put(path, {"action": "read"})).status
    assert 200 == (await rest.put(path, {"action": "read", "schema_hash": HASH})).status

    await see(rest, "later")
    assert "approved" == (await state_of(rest, "later"))["state"]


async def test_a_tools_name_may_hold_what_names_hold(rest: Rest) -> None:
    await rest.add_server()
    await see(rest, "a/b c", "ä:ö")
    for path in ("a%2Fb%20c", "%C3%A4%3A%C3%B6"):
        answer = await rest.put(f"/api/v1/servers/time/tools/{path}", {"action": "read"})
        assert 200 == answer.status, answer.body
    nul = await rest.put("/api/v1/servers/time/tools/a%00b", {"action": "read"})
    assert 422 == nul.status


async def test_a_bulk_answers_for_each_item_alone(rest: Rest) -> None:
    await rest.add_server()
    await see(rest, *(f"tool-{n}" for n in range(499)))
    items = [{"tool": f"tool-{n}", "action": "read"} for n in range(499)]
    answer = await rest.post(
        "/api/v1/servers/time/tools:classify",
        {"items": [*items, {"tool": "unseen", "action": "read"}]},
    )

    assert 200 == answer.status
    results = {item["tool"]: (item["status"], item["code"]) for item in answer.json["items"]}
    assert ("refused", "not_found") == results.pop("unseen")
    assert {("approved", None)} == set(results.values())
    classified = [r for r in await rest.records() if r["type"] == "admin.tool.classified"]
    assert 499 == len(classified)
    too_many = {"items": [{"tool": f"t{n}", "action": "read"} for n in range(501)]}
    assert 422 == (await rest.post("/api/v1/servers/time/tools:classify", too_many)).status


async def test_a_class_that_does_not_exist_is_refused(rest: Rest) -> None:
    await rest.add_server()
    await see(rest, "now")
    bodies: list[dict[str, Any]] = [
        {"action": "unclassified"},
        {"action": "read", "state": "new"},
        {"action": "read", "allow_tags": ["A B"]},
        {},
    ]
    for body in bodies:
        assert 422 == (await rest.put("/api/v1/servers/time/tools/now", body)).status, body

    assert "unclassified" == (await state_of(rest, "now"))["state"]


async def test_planes_cannot_fill_the_inbox_without_end(rest: Rest) -> None:
    await rest.add_server()
    await see(rest, *(f"tool-{n}" for n in range(1005)))
    await see(rest, "bad\nname", server="time")
    await see(rest, "x", server="unknown")
    for n in range(20):
        await see(rest, "tool-1", hash_=f"sha256:{n:064x}")

    connection = await asyncpg.connect(rest.database.admin_dsn)
    tools = await connection.fetchval(
        "SELECT count(*) FROM control.tools WHERE tenant_id = $1", rest.running.tenant.id
    )
    kept = await connection.fetchval(
        "SELECT count(*) FROM control.tool_definitions WHERE tool = 'tool-1'"
    )
    await connection.close()
    assert 1000 == tools
    assert kept <= 11


async def test_deleting_a_server_deletes_its_tools(rest: Rest) -> None:
    await rest.add_server()
    await see(rest, "now")
    await rest.call("DELETE", "/api/v1/servers/time")
    await rest.add_server()

    assert [] == (await rest.get("/api/v1/servers/time/tools")).json["items"]
