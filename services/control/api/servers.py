"""Tool servers: which exist, how planes reach them, how far they are trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from starlette.responses import Response

from services.common.postgres.connection import Connection
from services.control import audit_records, upstream_credentials
from services.control import servers as rules
from services.control.api import server_credentials
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.server_credentials import NONE, Credential
from services.control.api.shapes import (
    Answer,
    Page,
    Paging,
    Time,
    check_if_match,
    split,
    start_of,
    tag,
)
from services.control.problems import Refusal, not_found
from services.control.roles import Role
from services.control.store import servers

router = APIRouter(prefix="/api/v1/servers", tags=["servers"])

Slug = Annotated[str, StringConstraints(pattern=rules.SLUG)]
Domain = Annotated[str, StringConstraints(pattern=rules.DOMAIN)]
StdioName = Annotated[str, StringConstraints(pattern=rules.STDIO_NAME)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Host = Annotated[str, StringConstraints(pattern=rules.HOST)]
Extension = Annotated[str, StringConstraints(pattern=rules.EXTENSION)]
Hosts = Annotated[list[Host], Field(max_length=rules.MAX_GRANTED)]
Extensions = Annotated[list[Extension], Field(max_length=rules.MAX_GRANTED)]
FirstByteS = Annotated[int, Field(ge=1, le=600)]
#: A reference, or empty for none.
Ca = Annotated[str, StringConstraints(pattern=f"{rules.REFERENCE}|^$")]
Urls = Annotated[list[Url], Field(max_length=rules.MAX_URLS)]


class Grants(Body):
    """What the server may ask of agents, and which extensions it speaks with them."""

    elicitation_form: bool = True
    elicitation_hosts: Hosts = Field(default=[])
    sampling: bool = False
    roots: bool = False
    extensions: Extensions = Field(default=[])


class NewServer(Body):
    slug: Slug
    domain: Domain | None = None
    trust: rules.Trust = "untrusted"
    transport: rules.Transport
    urls: Urls = Field([])
    stdio: StdioName | None = None
    era: rules.Era = "auto"
    case_fold: bool = False
    credential: Credential = NONE
    grants: Grants = Grants()
    first_byte_s: FirstByteS = 120
    share: rules.Share = "agent"
    headers: dict[str, str] = Field({})
    ca: Ca = ""


class ServerPatch(Body):
    """What is absent stays as it is, also within `grants`; `headers` are set as a whole."""

    domain: Domain | None = None
    trust: rules.Trust | None = None
    transport: rules.Transport | None = None
    urls: Urls | None = None
    stdio: StdioName | None = None
    era: rules.Era | None = None
    case_fold: bool | None = None
    credential: Credential | None = None
    grants: Grants | None = None
    first_byte_s: FirstByteS | None = None
    share: rules.Share | None = None
    headers: dict[str, str] | None = None
    ca: Ca | None = None


class Server(Answer):
    id: str
    slug: str
    domain: str
    trust: str
    transport: str
    urls: list[str]
    stdio: str
    era: str
    case_fold: bool
    credential: dict[str, Any]
    grants: Grants
    first_byte_s: int
    share: str
    headers: dict[str, str]
    ca: str
    revision: int
    created_at: Time


@router.get("")
async def list_servers(call: Annotated[Call, needs(Role.VIEWER)], query: Paging) -> Page[Server]:
    after = start_of(call, "servers", query)
    async with call.read() as connection:
        rows = await servers.page(connection, after=after, limit=query.page_size + 1)
    shown, following = split(call, "servers", query, rows, lambda row: str(row["slug"]))
    return Page(items=[_server(row) for row in shown], next_page_token=following)


@router.post("", status_code=201)
async def create_server(
    call: Annotated[Call, needs(Role.POLICY_AUTHOR)],
    body: Annotated[NewServer, json_body(NewServer)],
    response: Response,
) -> Server:
    rules.check_slug(body.slug)
    server = {
        "slug": body.slug,
        "domain": body.domain or body.slug,
        "trust": body.trust,
        "transport": body.transport,
        "urls": body.urls,
        "stdio": body.stdio or "",
        "era": body.era,
        "case_fold": body.case_fold,
        "grants": body.grants.model_dump(),
        "first_byte_s": body.first_byte_s,
        "share": body.share,
        "headers": body.headers,
        "ca": body.ca,
        **server_credentials.columns(body.credential),
    }
    _check(server)
    async with call.change() as change:
        server_id = call.control.new_id()
        row = await servers.insert(
            change.connection, call.tenant, id=server_id, server=server, now=call.now
        )
        if row is None:
            raise Refusal("CONFLICT", "A server of that slug exists.")
        await change.record(
            "admin.server.created",
            resource="server",
            resource_id=server_id,
            changes=audit_records.differences({}, rules.desired(server)),
        )
    response.headers["location"] = f"/api/v1/servers/{body.slug}"
    tag(response, row["revision"])
    return _server(row)


@router.get("/{server}")
async def get_server(
    server: str, call: Annotated[Call, needs(Role.VIEWER)], response: Response
) -> Server:
    async with call.read() as connection:
        row = await find(connection, server)
    tag(response, row["revision"])
    return _server(row)


@router.patch("/{server}")
async def update_server(
    server: str,
    call: Annotated[Call, needs(Role.POLICY_AUTHOR)],
    body: Annotated[ServerPatch, json_body(ServerPatch)],
    response: Response,
) -> Server:
    apart = {"credential", "grants"}
    sent = {name: getattr(body, name) for name in body.model_fields_set - apart}
    sent = {name: value for name, value in sent.items() if value is not None or name == "stdio"}
    async with call.change() as change:
        before = await find(change.connection, server, lock=True)
        check_if_match(call.request, before["revision"])
        after = {
            **before,
            **sent,
            **(server_credentials.columns(body.credential) if body.credential else {}),
        }
        after["stdio"] = after["stdio"] or ""
        if body.grants is not None:
            granted = body.grants.model_dump(exclude_unset=True)
            after["grants"] = {**_grants(before).model_dump(), **granted}
        _check(after)
        row = await servers.update(change.connection, str(before["id"]), after)
        await change.record(
            "admin.server.updated",
            resource="server",
            resource_id=str(before["id"]),
            changes=_changes(before, row),
        )
    tag(response, row["revision"])
    return _server(row)


@router.delete("/{server}", status_code=204)
async def delete_server(server: str, call: Annotated[Call, needs(Role.POLICY_AUTHOR)]) -> Response:
    async with call.change() as change:
        row = await find(change.connection, server, lock=True)
        check_if_match(call.request, row["revision"])
        await servers.delete(change.connection, str(row["id"]))
        await change.record("admin.server.deleted", resource="server", resource_id=str(row["id"]))
    return Response(status_code=204)


async def find(connection: Connection, name: str, *, lock: bool = False) -> dict[str, Any]:
    """By slug or id. Raises NOT_FOUND."""
    row = None if "\0" in name else await servers.get(connection, name, lock=lock)
    if row is None:
        raise not_found("server")
    return row


def _check(server: Mapping[str, Any]) -> None:
    rules.check_reach(server["transport"], server["urls"], server["stdio"])
    rules.check_transport_only(server)
    rules.check_headers(server["headers"])
    rules.check_grants({**Grants().model_dump(), **server["grants"]})
    upstream_credentials.check(server)
    rules.check_nothing_secret(server)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was taken away, too."""
    old = rules.desired(before)
    return audit_records.differences(old, {**dict.fromkeys(old), **rules.desired(after)})


def _grants(row: Mapping[str, Any]) -> Grants:
    """What was never said is as shipped."""
    return Grants(**row["grants"])


def _server(row: Mapping[str, Any]) -> Server:
    shown = {**row, "id": str(row["id"]), "grants": _grants(row)}
    return Server(**shown, credential=server_credentials.shown(row))
