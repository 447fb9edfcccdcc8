"""What people outside are told: events, and the few facts that a notice of one may carry.

Ids, names, codes and clocks alone: no argument, no result, no reason in anybody's words. Names come
from agents and tool servers, so they are made harmless here, once, before anything stores them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from services.common.ids import TenantId

Event = Literal[
    "escalation.opened",
    "escalation.half_time",
    "escalation.settled",
    "kill_switch.on",
    "kill_switch.off",
    "license.expiring",
    "license.grace",
    "license.lapsed",
]
EVENTS: Final[tuple[Event, ...]] = (
    "escalation.opened",
    "escalation.half_time",
    "escalation.settled",
    "kill_switch.on",
    "kill_switch.off",
    "license.expiring",
    "license.grace",
    "license.lapsed",
)
#: Told to every destination that is on: nobody asks for them, and nobody is spared.
Alert = Literal["sign_in.break_glass"]
ALERTS: Final[tuple[Alert, ...]] = ("sign_in.break_glass",)
MAX_CODES: Final = 32
_SPOILT: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})


class Escalation(msgspec.Struct, frozen=True, kw_only=True, tag="escalation", tag_field="of"):
    """`tool` is the method's name where no tool is called."""

    id: str
    agent_id: str
    agent: str
    server: str
    tool: str
    action: str
    codes: tuple[str, ...]
    tier: str
    quorum: int
    opened_at: datetime
    decide_by: datetime
    state: str = "pending"

    @property
    def half_time(self) -> datetime:
        return self.opened_at + (self.decide_by - self.opened_at) / 2


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="kill_switch", tag_field="of"):
    """A kill switch; `subject` is empty where the scope is a whole tenant or fleet."""

    id: str
    scope: str
    subject: str
    at: datetime


class Term(msgspec.Struct, frozen=True, kw_only=True, tag="license", tag_field="of"):
    """How long a tenant's plan still holds. `id` is of this notice; `term` is the same in all of
    one term. After `lapses_at` the features named in `changed` are not configurable any more.
    """

    id: str
    term: str
    plan: str
    state: str
    at: datetime
    ends_at: datetime | None
    lapses_at: datetime | None
    changed: tuple[str, ...] = ()


class SignIn(msgspec.Struct, frozen=True, kw_only=True, tag="sign_in", tag_field="of"):
    """Somebody came in by a door that is there for emergencies. `id` is the session's."""

    id: str
    user_id: str
    user: str
    client_ip: str
    at: datetime


Facts = Escalation | Stop | Term | SignIn


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One delivery to one destination. Its id and every byte stay the same when it is repeated.
    Without facts it is a test.
    """

    id: str
    event: Event | Alert | Literal["test"]
    tenant: TenantId
    tenant_slug: str
    facts: Facts | None
    #: Where people go to act.
    link: str
    at: datetime


def escalation(
    *,
    id: str,
    agent_id: str,
    agent: str,
    server: str,
    tool: str,
    action: str,
    codes: Sequence[str],
    tier: str,
    quorum: int,
    opened_at: datetime,
    decide_by: datetime,
    state: str = "pending",
) -> Escalation:
    """The facts of an escalation, its names made harmless."""
    return Escalation(
        id=id,
        agent_id=agent_id,
        agent=harmless(agent),
        server=harmless(server),
        tool=harmless(tool, limit=128),
        action=harmless(action),
        codes=tuple(harmless(code) for code in codes[:MAX_CODES]),
        tier=harmless(tier),
        quorum=quorum,
        opened_at=opened_at,
        decide_by=decide_by,
        state=state,
    )


def stop(*, id: str, scope: str, subject: str, at: datetime) -> Stop:
    return Stop(id=id, scope=scope, subject=harmless(subject), at=at)


def term(
    *,
    id: str,
    term: str,
    plan: str,
    state: str,
    at: datetime,
    ends_at: datetime | None,
    lapses_at: datetime | None,
    changed: Sequence[str] = (),
) -> Term:
    return Term(
        id=id,
        term=term,
        plan=harmless(plan),
        state=harmless(state),
        at=at,
        ends_at=ends_at,
        lapses_at=lapses_at,
        changed=tuple(harmless(key) for key in changed),
    )


def sign_in(*, id: str, user_id: str, user: str, client_ip: str, at: datetime) -> SignIn:
    return SignIn(id=id, user_id=user_id, user=harmless(user), client_ip=harmless(client_ip), at=at)


def harmless(text: str, *, limit: int = 80) -> str:
    """One short line of what can be seen: no control, no line break, nothing that turns the reading
    direction or hides.
    """
    seen = "".join(
        "\ufffd" if unicodedata.category(c) in _SPOILT else " " if c.isspace() else c
        for c in text[: limit + 1]
    )
    return seen if len(seen) <= limit else seen[: limit - 1] + "\u2026"


def encode(facts: Facts) -> str:
    return msgspec.json.encode(facts).decode()


def decode(stored: str) -> Facts:
    facts: Facts = _DECODER.decode(stored)
    return facts


def z(at: datetime) -> str:
    """RFC 3339, UTC, `Z`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def link_of(public_url: str, facts: Facts | None) -> str:
    """The page where an escalation is decided; the installation's own where there is none."""
    if isinstance(facts, Escalation):
        return f"{public_url}/approve/{facts.id}"
    return f"{public_url}/"


_DECODER: Final = msgspec.json.Decoder(Facts)
