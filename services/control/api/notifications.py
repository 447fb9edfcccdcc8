"""Where people outside are told that something waits: destinations, a test of each, and what became
of every notice. Core, on every plan.

What a destination must look like is notifications/destinations.py's; sending is its sender's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter
from pydantic import Field, StringConstraints, ValidationError, WithJsonSchema
from starlette.responses import Response

from services.common.postgres.connection import Connection
from services.control import audit_records
from services.control.api.bodies import Body, JsonBody, json_body
from services.control.api.context import Call
from services.control.api.guards import needs
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
from services.control.audit_records import change as changed
from services.control.notifications import destinations as rules
from services.control.notifications.notices import EVENTS, Event, Notice, link_of
from services.control.notifications.sending import SendFailed
from services.control.problems import Refusal, not_found
from services.control.roles import Role
from services.control.store import notification_deliveries as deliveries
from services.control.store import notification_destinations as destinations

router = APIRouter(prefix="/api/v1/settings/notifications", tags=["notifications"])

Admin = Annotated[Call, needs(Role.ADMIN)]
Secret = Annotated[str, StringConstraints(pattern=rules.SECRET)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Host = Annotated[str, StringConstraints(pattern=rules.HOST)]
Address = Annotated[str, StringConstraints(pattern=rules.ADDRESS, max_length=254)]
Name = Annotated[str, StringConstraints(pattern=rules.NAME)]
Events = Annotated[list[Event], Field(min_length=1, max_length=len(EVENTS))]


class EmailSettings(Body):
    """`password` is a reference; without a user name, nobody signs in."""

    host: Host
    port: int = Field(587, ge=1, le=65535)
    security: rules.Security = "starttls"
    username: str = Field("", max_length=254)
    password: Secret | Literal[""] = ""
    sender: Address
    recipients: list[Address] = Field(min_length=1, max_length=rules.MAX_RECIPIENTS)
    #: In clear to another machine.
    plaintext: bool = False


class WebhookSettings(Body):
    """`key` signs; it is a reference to 24 bytes or more, or to `whsec_` and their base64."""

    url: Url
    key: Secret
    plaintext: bool = False


class SlackSettings(Body):
    """`url` is a reference: whoever knows the address may post."""

    url: Secret
    plaintext: bool = False


class PagerDutySettings(Body):
    url: Url = rules.PAGERDUTY_URL
    routing_key: Secret
    severity: rules.Severity = "critical"
    plaintext: bool = False


_READERS: Final[Mapping[str, JsonBody[Any]]] = {
    "email": JsonBody(EmailSettings),
    "webhook": JsonBody(WebhookSettings),
    "slack": JsonBody(SlackSettings),
    "pagerduty": JsonBody(PagerDutySettings),
}
#: Which of them it is, `kind` says.
Settings = Annotated[
    dict[str, Any],
    WithJsonSchema({"oneOf": [one.model.model_json_schema() for one in _READERS.values()]}),
]


class NewDestination(Body):
    name: Name
    kind: rules.Kind
    settings: Settings
    events: Events | None = None
    enabled: bool = True


class DestinationPatch(Body):
    """What is absent stays as it is; `settings` are replaced as a whole."""

    name: Name | None = None
    settings: Settings | None = None
    events: Events | None = None
    enabled: bool | None = None


class NotificationHealth(Answer):
    """Of the destinations that are switched on: how many, and how many do not hear of anything."""

    enabled: int
    failing: int
    failing_since: Time | None


class Health(Answer):
    """`failing`: the newest attempts did not arrive."""

    state: Literal["unknown", "working", "failing"]
    failing_since: Time | None
    error: str
    last_delivered_at: Time | None


class Destination(Answer):
    id: str
    name: str
    kind: str
    settings: dict[str, Any]
    events: list[str]
    enabled: bool
    health: Health
    revision: int
    created_at: Time


class Tested(Answer):
    """`code` says why it failed; `status` is the other side's number."""

    outcome: Literal["delivered", "failed"]
    code: str
    status: int | None
    duration_ms: int


class Delivery(Answer):
    id: str
    destination_id: str
    event: str
    #: The escalation or the kill switch.
    subject_id: str
    state: str
    attempts: int
    planned_at: Time
    #: While it is queued.
    next_at: Time | None
    delivered_at: Time | None
    error: str


@router.get("")
async def list_notification_destinations(call: Admin, query: Paging) -> Page[Destination]:
    after = start_of(call, "notifications", query)
    async with call.read() as connection:
        rows = await destinations.page(connection, after=after, limit=query.page_size + 1)
    shown, following = split(call, "notifications", query, rows, lambda row: str(row["name"]))
    return Page(items=[_answer(row) for row in shown], next_page_token=following)


@router.get("/health")
async def get_notification_health(call: Annotated[Call, needs(Role.VIEWER)]) -> NotificationHealth:
    """For whoever shows the inbox: people may not be hearing of what waits."""
    async with call.read() as connection:
        return NotificationHealth(**await destinations.health(connection))


@router.post("", status_code=201)
async def create_notification_destination(
    call: Admin, body: Annotated[NewDestination, json_body(NewDestination)], response: Response
) -> Destination:
    settings = _settings(body.kind, body.settings)
    async with call.change(desired=False) as change:
        if await destinations.count(change.connection) >= rules.MAX_PER_TENANT:
            raise Refusal("CONFLICT", f"A tenant has at most {rules.MAX_PER_TENANT} destinations.")
        destination = call.control.new_id()
        row = await destinations.insert(
            change.connection,
            call.tenant,
            id=destination,
            name=body.name,
            kind=body.kind,
            settings=settings,
            events=body.events or rules.default_events(body.kind),
            enabled=body.enabled,
            now=call.now,
        )
        if row is None:
            raise _taken()
        await change.record(
            "admin.notification_destination.created",
            resource="notification_destination",
            resource_id=destination,
            changes=_recorded({}, row),
        )
    response.headers["location"] = f"{router.prefix}/{destination}"
    tag(response, row["revision"])
    return _answer(row)


@router.get("/{destination_id:uuid}")
async def get_notification_destination(
    destination_id: UUID, call: Admin, response: Response
) -> Destination:
    async with call.read() as connection:
        row = await _found(connection, destination_id)
    tag(response, row["revision"])
    return _answer(row)


@router.patch("/{destination_id:uuid}")
async def update_notification_destination(
    destination_id: UUID,
    call: Admin,
    body: Annotated[DestinationPatch, json_body(DestinationPatch)],
    response: Response,
) -> Destination:
    """What waits is tried again at once; what waits for one that is switched off is dropped."""
    async with call.change(desired=False) as change:
        before = await _found(change.connection, destination_id, lock=True)
        check_if_match(call.request, before["revision"], required=True)
        sent = body.model_dump(exclude_none=True)
        if "settings" in sent:
            sent["settings"] = _settings(before["kind"], sent["settings"])
        after = {**before, **sent}
        if await destinations.name_taken(change.connection, after["name"], but_by=before["id"]):
            raise _taken()
        row = await destinations.update(
            change.connection,
            before["id"],
            name=after["name"],
            settings=after["settings"],
            events=after["events"],
            enabled=after["enabled"],
        )
        if row["enabled"]:
            await deliveries.try_at_once(change.connection, before["id"], call.now)
        else:
            await deliveries.drop_all(change.connection, before["id"])
        await change.record(
            "admin.notification_destination.updated",
            resource="notification_destination",
            resource_id=before["id"],
            changes=_recorded(before, row),
        )
    tag(response, row["revision"])
    return _answer(row)


@router.delete("/{destination_id:uuid}", status_code=204)
async def delete_notification_destination(destination_id: UUID, call: Admin) -> Response:
    """What waits for it is not sent."""
    async with call.change(desired=False) as change:
        row = await _found(change.connection, destination_id, lock=True)
        check_if_match(call.request, row["revision"], required=True)
        await destinations.delete(change.connection, row["id"])
        await change.record(
            "admin.notification_destination.deleted",
            resource="notification_destination",
            resource_id=row["id"],
        )
    return Response(status_code=204)


@router.post("/{destination_id:uuid}:test")
async def test_notification_destination(destination_id: UUID, call: Admin) -> Tested:
    """Sends a notice that says that it is a test, now and once, and tells what became of it."""
    async with call.read() as connection:
        row = await _found(connection, destination_id)
    clock = call.control.clock
    notice = Notice(
        id=call.control.new_id(),
        event="test",
        tenant=call.tenant,
        tenant_slug=call.principal.tenant_slug,
        facts=None,
        link=link_of(call.control.settings.public_url, None),
        at=call.now,
    )
    began_ns = clock.monotonic_ns()
    code, status = "", None
    try:
        sent = await call.control.sender.send(rules.read(row["kind"], row["settings"]), notice)
    except SendFailed as failure:
        outcome: Literal["delivered", "failed"] = "failed"
        code, status = failure.code, failure.status
    else:
        outcome, code, status = "delivered", sent.note, sent.status
    duration_ms = (clock.monotonic_ns() - began_ns) // 1_000_000
    async with call.change(desired=False) as change:
        if outcome == "delivered":
            await destinations.works(change.connection, row["id"], call.now)
        else:
            await destinations.fails(change.connection, row["id"], code, call.now)
        await change.record(
            "admin.notification_destination.tested",
            resource="notification_destination",
            resource_id=row["id"],
            changes=[changed("outcome", None, outcome), changed("error", None, code or None)],
        )
    if outcome == "delivered":
        async with call.read() as connection:
            await deliveries.try_at_once(connection, row["id"], call.now)
    return Tested(outcome=outcome, code=code, status=status, duration_ms=duration_ms)


@router.get("/{destination_id:uuid}/deliveries")
async def list_notification_deliveries(
    destination_id: UUID, call: Admin, query: Paging
) -> Page[Delivery]:
    """Newest first; seven days of them."""
    listing = f"notifications/{destination_id}"
    before = start_of(call, listing, query)
    async with call.read() as connection:
        rows = await deliveries.page(
            connection, str(destination_id), before=before, limit=query.page_size + 1
        )
    if rows is None:
        raise not_found("notification destination")
    shown, following = split(call, listing, query, rows, lambda row: str(row["id"]))
    return Page(items=[_delivery(row) for row in shown], next_page_token=following)


@router.post("/deliveries/{delivery_id:uuid}:redeliver")
async def redeliver_notification(
    delivery_id: UUID, call: Annotated[Call, needs(Role.ADMIN, keyed=True)]
) -> Delivery:
    """The same notice again, under its own id."""
    async with call.change(desired=False) as change:
        before = await deliveries.get(change.connection, str(delivery_id))
        if before is None:
            raise not_found("delivery")
        destination = await destinations.get(change.connection, before["destination_id"])
        if before["state"] == "queued":
            raise Refusal("CONFLICT", "It is on its way.")
        if destination is None or not destination["enabled"]:
            raise Refusal("CONFLICT", "Its destination is switched off.")
        row = await deliveries.send_again(change.connection, before["id"], call.now)
        await change.record(
            "admin.notification.redelivered", resource="notification", resource_id=before["id"]
        )
    return _delivery(row)


def _settings(kind: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """As they are stored. Raises VALIDATION_FAILED."""
    reader = _READERS[kind]
    try:
        shaped = reader.model.model_validate(dict(raw))
    except ValidationError as bad:
        raise reader.refusal(bad, under="/settings") from None
    settings = rules.read(kind, shaped.model_dump())
    rules.check(settings)
    stored: dict[str, Any] = msgspec.to_builtins(settings)
    return {name: stored[name] for name in stored if name != "kind"}


async def _found(connection: Connection, id: UUID, *, lock: bool = False) -> dict[str, Any]:
    row = await destinations.get(connection, str(id), lock=lock)
    if row is None:
        raise not_found("notification destination")
    return row


def _taken() -> Refusal:
    return Refusal("CONFLICT", "A destination of that name exists.")


def _recorded(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    return audit_records.differences(_flat(before), _flat(after))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as fields of their own; a reference is recorded as it is, its value never seen."""
    plain = {name: row[name] for name in ("name", "kind", "events", "enabled") if name in row}
    return plain | {f"settings.{name}": value for name, value in row.get("settings", {}).items()}


def _answer(row: Mapping[str, Any]) -> Destination:
    failing, delivered = row["failing_since"], row["last_delivered_at"]
    return Destination(
        **row,
        health=Health(
            state="failing" if failing else "working" if delivered else "unknown",
            failing_since=failing,
            error=row["last_error"],
            last_delivered_at=delivered,
        ),
    )


def _delivery(row: Mapping[str, Any]) -> Delivery:
    next_at = row["next_at"] if row["state"] == "queued" else None
    return Delivery(**{**row, "next_at": next_at}, error=row["last_error"])
