"""The bytes of each kind of notice: mail, signed webhook, Slack, PagerDuty. Pure.

Names in a notice were chosen by agents and tool servers. What people read holds them as plain text:
no markup, no mention, no header, no address that a reader's program would make a link of. The one
link is ours. Nobody decides by answering.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any, Final

import orjson

from services.control.notifications.destinations import Severity
from services.control.notifications.notices import Escalation, Notice, SignIn, Stop, Term, z

#: Of the webhook's body.
VERSION: Final = "behavry.notification/1"
#: Standard Webhooks 1.0.0, "Signature scheme".
MIN_KEY_BYTES: Final = 24
_KEY_PREFIX: Final = "whsec_"
_DAY: Final = timedelta(days=1)
_NOT_BY_REPLY: Final = "Nobody decides by answering this message."


class KeyUnusable(ValueError):
    """The signing key is too short, or not the base64 that it says it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """A request. The body may hold a routing key."""

    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


# --- mail -------------------------------------------------------------------------------------


def mail(notice: Notice, *, sender: str, recipients: tuple[str, ...]) -> bytes:
    """Plain text. `Message-ID` is the notice's id; all of one escalation hang together."""
    domain = sender.rpartition("@")[2]
    message = EmailMessage(policy=SMTP)
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Subject"] = f"[Behavry] {title(notice)}"
    message["Date"] = format_datetime(notice.at)
    message["Message-ID"] = f"<{notice.id}@{domain}>"
    if notice.facts is not None:
        message["References"] = f"<{notice.facts.id}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834 5
    rows = "".join(f"{name + ':':<16}{value}\n" for name, value in details(notice))
    text = f"{title(notice)}\n\n{rows}\n{notice.link}\n\n{_NOT_BY_REPLY}\n"
    message.set_content(text, charset="utf-8", cte="quoted-printable")
    return message.as_bytes()


# --- webhook ----------------------------------------------------------------------------------


def webhook(notice: Notice, *, key: str, now_s: int) -> Post:
    """Standard Webhooks 1.0.0: id, time and body are signed together, so that none can be used with
    another. The id stays when it is sent again; the time and the signature are new.
    """
    body = orjson.dumps(document(notice), option=orjson.OPT_SORT_KEYS)
    headers = {
        "content-type": "application/json",
        "webhook-id": notice.id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": f"v1,{signature(signing_key(key), notice.id, now_s, body)}",
    }
    return Post(body=body, headers=headers)


def signature(key: bytes, id: str, now_s: int, body: bytes) -> str:
    """Base64 of HMAC-SHA256 over `id.timestamp.body`."""
    mac = hmac.digest(key, f"{id}.{now_s}.".encode() + body, "sha256")
    return base64.b64encode(mac).decode()


def signing_key(secret: str) -> bytes:
    """`whsec_` and base64, or the text itself. Raises KeyUnusable."""
    try:
        key = (
            base64.b64decode(secret.removeprefix(_KEY_PREFIX), validate=True)
            if secret.startswith(_KEY_PREFIX)
            else secret.encode()
        )
    except binascii.Error:
        raise KeyUnusable from None
    if len(key) < MIN_KEY_BYTES:
        raise KeyUnusable
    return key


def document(notice: Notice) -> dict[str, Any]:
    told: dict[str, Any] = {
        "v": VERSION,
        "id": notice.id,
        "event": notice.event,
        "test": notice.facts is None,
        "at": z(notice.at),
        "tenant": {"id": notice.tenant, "slug": notice.tenant_slug},
        "link": notice.link,
    }
    match notice.facts:
        case Escalation() as one:
            told["escalation"] = {
                "id": one.id,
                "state": one.state,
                "agent": {"id": one.agent_id, "name": one.agent},
                "server": one.server,
                "tool": one.tool,
                "action": one.action,
                "codes": one.codes,
                "tier": one.tier,
                "quorum": one.quorum,
                "opened_at": z(one.opened_at),
                "decide_by": z(one.decide_by),
            }
        case Stop() as one:
            told["kill_switch"] = {
                "id": one.id,
                "scope": one.scope,
                "subject": one.subject,
                "at": z(one.at),
            }
        case Term() as one:
            told["license"] = {
                "id": one.id,
                "term": one.term,
                "plan": one.plan,
                "state": one.state,
                "at": z(one.at),
                "ends_at": z(one.ends_at) if one.ends_at else None,
                "lapses_at": z(one.lapses_at) if one.lapses_at else None,
                "changed": one.changed,
            }
        case SignIn() as one:
            told["sign_in"] = {
                "id": one.id,
                "user": {"id": one.user_id, "name": one.user},
                "client_ip": one.client_ip,
                "at": z(one.at),
            }
        case None:
            pass
    return told


# --- Slack ------------------------------------------------------------------------------------


def slack(notice: Notice) -> Post:
    """Blocks of plain text, where nothing is markup; the fallback text is escaped. The one piece of
    markup is our own link.
    """
    rows = "\n".join(f"{name}: {value}" for name, value in details(notice))
    blocks = [
        {"type": "header", "text": _plain(title(notice), 150)},
        {"type": "section", "text": _plain(rows, 3000)},
        {
            "type": "section",
            "text": {"type": "mrkdwn", "text": f"<{notice.link}|Open in Behavry>"},
        },
        {"type": "context", "elements": [_plain(_NOT_BY_REPLY, 150)]},
    ]
    told = {"text": slack_escaped(title(notice)), "blocks": blocks}
    return _json(told)


def slack_escaped(text: str) -> str:
    """The three characters that begin markup there."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(text: str, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": text[:limit] or "-", "emoji": False}


# --- PagerDuty --------------------------------------------------------------------------------


def pagerduty(
    notice: Notice, *, routing_key: str, severity: Severity, resolve: bool = False
) -> Post:
    """Events API v2. An escalation or a kill switch is one incident: opened, told again at half
    time, resolved at its end.
    """
    told: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": "resolve" if resolve or _is_end(notice) else "trigger",
        "dedup_key": _dedup_key(notice),
    }
    if told["event_action"] == "trigger":
        told |= {
            "client": "Behavry",
            "client_url": notice.link,
            "links": [{"href": notice.link, "text": "Open in Behavry"}],
            "payload": {
                "summary": title(notice)[:1024],
                "source": notice.tenant_slug,
                "severity": "info" if notice.facts is None else severity,
                "timestamp": z(notice.at),
                "class": notice.event,
                "custom_details": dict(details(notice)),
            },
        }
    return _json(told)


def _is_end(notice: Notice) -> bool:
    return notice.event in {"escalation.settled", "kill_switch.off"}


def _dedup_key(notice: Notice) -> str:
    match notice.facts:
        case Escalation() as one:
            return f"behavry-escalation-{one.id}"
        case Stop() as one:
            return f"behavry-kill-switch-{one.id}"
        case Term() as one:
            return f"behavry-license-{one.term}"
        case SignIn() as one:
            return f"behavry-sign-in-{one.id}"
        case None:
            return f"behavry-test-{notice.id}"


def _json(told: Any) -> Post:
    return Post(body=orjson.dumps(told), headers={"content-type": "application/json"})


# --- words ------------------------------------------------------------------------------------


def title(notice: Notice) -> str:
    """One line."""
    match notice.facts:
        case Escalation() as one:
            call = f"{readable(one.agent)} calls {readable(one.server)}/{readable(one.tool)}"
            match notice.event:
                case "escalation.settled":
                    return f"No longer waiting ({one.state}): {call}"
                case "escalation.half_time":
                    return f"Still waiting, half of the time is over: {call}"
                case _:
                    return f"Approval needed: {call}"
        case Stop() as one:
            what = f"{one.scope} {readable(one.subject)}".strip()
            state = "released" if notice.event == "kill_switch.off" else "on"
            return f"Kill switch {state}: {what}"
        case Term() as one:
            return _term_title(notice.event, one)
        case SignIn() as one:
            return f"Emergency sign-in by password: {readable(one.user)}"
        case None:
            return "Test: notices of this destination arrive here"


def _term_title(event: str, one: Term) -> str:
    match event:
        case "license.lapsed":
            return f"The {one.plan} plan has lapsed ({one.state}); its rules stay in force"
        case "license.grace":
            return f"The {one.plan} plan has ended; it lapses in {_days(one.at, one.lapses_at)}"
        case _:
            return f"The {one.plan} plan ends in {_days(one.at, one.ends_at)}"


def _days(at: datetime, until: datetime | None) -> str:
    """Begun ones count."""
    days = max(0, -((at - until) // _DAY)) if until else 0
    return "1 day" if days == 1 else f"{days} days"


def details(notice: Notice) -> list[tuple[str, str]]:
    """What people are shown below the title, as names and values."""
    match notice.facts:
        case Escalation() as one:
            return [
                ("Agent", f"{readable(one.agent)} ({one.agent_id})"),
                ("Server", readable(one.server)),
                ("Tool", readable(one.tool)),
                ("Action", readable(one.action)),
                ("Codes", ", ".join(readable(code) for code in one.codes) or "-"),
                ("Tier", readable(one.tier)),
                ("Approvals", str(one.quorum)),
                ("State", one.state),
                ("Opened", _time(one.opened_at)),
                ("Decide by", _time(one.decide_by)),
                ("Tenant", notice.tenant_slug),
                ("Id", one.id),
            ]
        case Stop() as one:
            return [
                ("Scope", one.scope),
                ("Subject", readable(one.subject) or "-"),
                ("At", _time(one.at)),
                ("Tenant", notice.tenant_slug),
                ("Id", one.id),
            ]
        case Term() as one:
            return [
                ("Plan", one.plan),
                ("State", one.state),
                ("Ends", _time(one.ends_at) if one.ends_at else "-"),
                ("Lapses", _time(one.lapses_at) if one.lapses_at else "-"),
                ("Changed", ", ".join(one.changed) or "-"),
                ("Calls", "decided and recorded as before"),
                ("Tenant", notice.tenant_slug),
                ("Id", one.id),
            ]
        case SignIn() as one:
            return [
                ("Person", f"{readable(one.user)} ({one.user_id})"),
                ("From", readable(one.client_ip) or "-"),
                ("At", _time(one.at)),
                ("Why", "people sign in by a provider here; this account need not"),
                ("Tenant", notice.tenant_slug),
                ("Id", one.id),
            ]
        case None:
            return [("Tenant", notice.tenant_slug), ("Id", notice.id)]


def readable(name: str) -> str:
    """A name in a text for people, such that no program makes a link or a mention of it."""
    return name.replace("://", ":/\u2044").replace("www.", "www\u00b7").replace("@", "\uff20")


def _time(at: datetime) -> str:
    return z(at).replace("T", " ").replace(".000Z", " UTC").replace("Z", " UTC")
