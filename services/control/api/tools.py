"""The tool inbox: what servers offer, and what an admin says each tool does.

Classifying pins the definition that was last seen; another one hides the tool again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field, StringConstraints

from services.control import agents as agent_rules
from services.control import servers as rules
from services.control.api import servers as servers_api
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Change
from services.control.api.guards import needs
from services.control.api.shapes import Answer, Page, Paging, Time, split, start_of
from services.control.audit_records import differences
from services.control.problems import Refusal, invalid, not_found
from services.control.roles import Role
from services.control.store import tools
from services.control.store.tools import Classification

router = APIRouter(prefix="/api/v1/servers", tags=["servers"])

Category = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,39}$")]
Hash = Annotated[str, StringConstraints(pattern=rules.SCHEMA_HASH)]
Tag = Annotated[str, StringConstraints(pattern=agent_rules.TAG)]
MAX_ITEMS = 500


class Class(Body):
    """`schema_hash`: the definition that was looked at; absent, the one last seen."""

    action: rules.Action
    category: Category = "other"
    state: Literal["approved", "hidden"] = "approved"
    allow_tags: Annotated[list[Tag], Field(max_length=20)] = Field([])
    schema_hash: Hash | None = None


class ClassItem(Class):
    tool: Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Classes(Body):
    items: Annotated[list[ClassItem], Field(min_length=1, max_length=MAX_ITEMS)]


class Tool(Answer):
    name: str
    state: str
    action: str
    category: str
    allow_tags: list[str]
    #: The approved definition's hash, and the one last seen; null: none.
    schema_hash: str | None
    seen_schema_hash: str | None
    revision: int


class SeenTool(Tool):
    first_seen_at: Time | None
    last_seen_at: Time | None
    definition: dict[str, Any] | None


class ItemResult(Answer):
    tool: str
    #: The tool's state, or `refused`.
    status: str
    code: str | None = None


class Results(Answer):
    items: list[ItemResult]


@router.get("/{server}/tools")
async def list_tools(
    server: str, call: Annotated[Call, needs(Role.VIEWER)], query: Paging
) -> Page[SeenTool]:
    listing = f"tools:{server}"
    after = start_of(call, listing, query)
    if "\0" in server:
        raise not_found("server")
    async with call.read() as connection:
        rows = await tools.page(connection, server, after=after, limit=query.page_size + 1)
    if rows is None:
        raise not_found("server")
    shown, following = split(call, listing, query, rows, lambda row: str(row["name"]))
    return Page(items=[_seen(row) for row in shown], next_page_token=following)


@router.put("/{server}/tools/{tool:path}")
async def classify_tool(
    server: str,
    tool: str,
    call: Annotated[Call, needs(Role.POLICY_AUTHOR)],
    body: Annotated[Class, json_body(Class)],
) -> Tool:
    async with call.change() as change:
        row = await servers_api.find(change.connection, server)
        if not rules.is_tool_name(tool):
            raise invalid("?tool", "pattern", "This cannot be a tool's name.")
        known = await tools.by_name(change.connection, str(row["id"]), [tool])
        item = ClassItem(**body.model_dump(), tool=tool)
        made = await _classify(call, change, str(row["id"]), known.get(tool), item)
    return _tool(made)


@router.post("/{server}/tools:classify")
async def classify_tools(
    server: str,
    call: Annotated[Call, needs(Role.POLICY_AUTHOR)],
    body: Annotated[Classes, json_body(Classes)],
) -> Results:
    """Each item stands alone: a wrong one is refused, the others are done."""
    results: list[ItemResult] = []
    async with call.change() as change:
        row = await servers_api.find(change.connection, server)
        server_id = str(row["id"])
        known = await tools.by_name(change.connection, server_id, _names(body.items))
        for item in body.items:
            try:
                made = await _classify(call, change, server_id, known.get(item.tool), item)
            except Refusal as refused:
                results.append(ItemResult(tool=item.tool, status="refused", code=refused.code))
                continue
            known[item.tool] = made
            results.append(ItemResult(tool=item.tool, status=made["state"]))
    return Results(items=results)


def _names(items: Sequence[ClassItem]) -> list[str]:
    """Sorted, so that two bulk requests lock rows in one order."""
    return sorted({item.tool for item in items if rules.is_tool_name(item.tool)})


async def _classify(
    call: Call,
    change: Change,
    server_id: str,
    known: Mapping[str, Any] | None,
    wanted: ClassItem,
) -> dict[str, Any]:
    """1. the definition that is meant  2. the row  3. its record."""
    tool = wanted.tool
    pinned = _pin(wanted, known)  # 1
    made = await tools.classify(  # 2
        change.connection,
        call.tenant,
        server_id,
        Classification(
            tool=tool,
            state=wanted.state,
            action=wanted.action,
            category=wanted.category,
            allow_tags=wanted.allow_tags,
            pinned_hash=pinned,
        ),
    )
    compared = ("state", "action", "category", "allow_tags", "pinned_hash")
    before = {name: known[name] for name in compared} if known else {}
    await change.record(  # 3
        "admin.tool.classified",
        resource="tool",
        resource_id=f"{server_id}/{tool}",
        changes=differences(before, {name: made[name] for name in compared}),
    )
    return made


def _pin(wanted: ClassItem, known: Mapping[str, Any] | None) -> str:
    """The hash to pin. What was looked at must still be what was last seen."""
    if not rules.is_tool_name(wanted.tool):
        raise invalid("/tool", "pattern", "This cannot be a tool's name.")
    seen = known["seen_hash"] if known else ""
    if not seen:
        if wanted.schema_hash is None:
            raise Refusal("NOT_FOUND", "No plane has seen this tool: name its schema_hash.")
        return wanted.schema_hash
    if wanted.schema_hash not in {None, seen}:
        raise Refusal("CONFLICT", "The tool's definition has changed since.")
    return str(seen)


def _tool(row: Mapping[str, Any]) -> Tool:
    return Tool(**_hashes(row))


def _seen(row: Mapping[str, Any]) -> SeenTool:
    definition = json.loads(row["definition"]) if row["definition"] else None
    return SeenTool(**{**_hashes(row), "definition": definition})


def _hashes(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "schema_hash": row["pinned_hash"] or None,
        "seen_schema_hash": row["seen_hash"] or None,
    }
