"""The approval page as HTML: a call that waits, and what can be said to it. Everything works as
plain forms, but for passkeys, which a browser asks from a script alone.

Pure: rows and words in, text out. Each value that is not ours goes through `visible`, which escapes
it and spells out what cannot be seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any, Final

from services.control.api.pages.frame import alert, document
from services.control.api.pages.sign_in_html import (
    Person,
    proof,
    proving_buttons,
    signed_in,
    submit,
)
from services.control.escalations import MAX_MINUTES, MAX_USES, Rule
from services.control.visible import markup

#: How far into a feature the page looks.
_DEEPEST: Final = 5
#: What a person reads beside a code.
_CODES: Final[Mapping[str, str]] = {
    "policy": "a policy asks for a person",
    "dlp_blocked": "the call carries something sensitive",
    "scan_limit": "the call was too large to be looked through",
    "counter_unavailable": "it is not known how much was done before",
    "blast_bulk": "it touches many things at once",
    "blast_recipients": "it reaches many or new recipients",
    "blast_depth": "it reaches deep",
    "blast_protected": "it touches something protected",
    "blast_config_path": "it touches configuration",
    "blast_ambiguous": "what it touches is ambiguous",
    "blast_cumulative": "much was done already",
}
_STATES: Final[Mapping[str, str]] = {
    "pending": "This call waits for a decision.",
    "approved": "This call is approved.",
    "denied": "This call was denied.",
    "cancelled": "This question was withdrawn: nobody needs to decide it any more.",
    "expired": "Nobody decided in time. The call was not run.",
    "superseded": "The policy or the tool has changed. The agent has to ask anew.",
    "consumed": "This call was approved, and the approval is used up.",
    "lapsed": "This call was approved, but not made in time.",
    "revoked": "This call was approved, and the approval was taken back.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """What somebody has to say about this call."""

    may_decide: bool
    eligible: bool
    voted: str | None


def not_found(path: str, person: Person) -> str:
    words = "<p>There is no such call here, or it is not yours to see.</p>"
    return document("Not found", f"<h1>Not found</h1>{words}", header=signed_in(path, person))


def page(
    path: str,
    row: Mapping[str, Any],
    rule: Rule,
    person: Person,
    say: Say,
    *,
    now: datetime,
    error: str = "",
    typed: Mapping[str, str] | None = None,
) -> str:
    """`typed`: what stood in the fields of a form that was refused."""
    open_now = row["state"] == "pending"
    title = "Allow this call?" if open_now else "A call that was asked about"
    body = "".join(
        (
            f"<h1>{title}</h1>",
            alert(error),
            f'<p class="state" id="state">{_standing(row, rule, now)}</p>',
            _section("What is asked", _asked(row)),
            _section("Why a person is asked", _why(row)),
            _section("Time", _clocks(row, now)),
            _section("Votes", _votes(row, rule)),
            _section("What the call looks like", _features(row)),
            _decide(path, row, person, say, typed or {}),
        )
    )
    return document(
        title,
        body,
        header=signed_in(path, person),
        failed=bool(error),
        scripted=person.scripted,
    )


# Parts of the page --------------------------------------------------------------------------------


def _standing(row: Mapping[str, Any], rule: Rule, now: datetime) -> str:
    words = _STATES[row["state"]]
    approvals = sum(vote["verdict"] == "approve" for vote in row["votes"])
    match row["state"]:
        case "pending" if approvals:
            words += f" {approvals} of {rule.quorum} needed have approved it."
        case "approved" if row["execute_by"]:
            left = row["uses_left"] if row["uses_left"] is not None else row["uses"]
            words += f" It may be made {_times(left)}, until {_moment(row['execute_by'], now)}."
    return words


def _asked(row: Mapping[str, Any]) -> str:
    requester = markup(row["requester_id"])
    requester += " (verified)" if row["requester_verified"] else " (says the agent; not verified)"
    return _list(
        ("Agent", f"{markup(row['agent_name'])}, class {markup(row['agent_class'])}"),
        ("Agent's id", f"<code>{markup(row['agent_id'])}</code>"),
        ("For", requester if row["requester_id"] else "nobody named"),
        ("Server", markup(row["server"])),
        ("Tool", f"<strong>{markup(row['tool'])}</strong>" if row["tool"] else ""),
        ("Method", f"<code>{markup(row['method'])}</code>"),
        ("Kind of action", ", ".join(markup(row[n]) for n in ("action", "category") if row[n])),
        ("Target", _target(row)),
        ("Risk of the agent", markup(row["tier"])),
    )


def _target(row: Mapping[str, Any]) -> str:
    if not row["resource"]:
        return "none named"
    kind = f" ({markup(row['resource_kind'])})" if row["resource_kind"] else ""
    return f"<strong>{markup(row['resource'])}</strong>{kind}"


def _why(row: Mapping[str, Any]) -> str:
    codes = (
        f"<code>{markup(code)}</code>" + (f": {_CODES[code]}" if code in _CODES else "")
        for code in row["codes"]
    )
    return _list(
        ("Reason", markup(row["reason"]) if row["reason"] else "none given"),
        ("Codes", "<br>".join(codes)),
        ("Policies", _joined(row["policies"])),
        ("Found in it", _joined(row["finding_tags"])),
        ("Policy revision", f"<code>{markup(row['policy_revision'])}</code>"),
    )


def _clocks(row: Mapping[str, Any], now: datetime) -> str:
    usable = f"within {_length(timedelta(seconds=row['execute_for_s']))} of the approval"
    if row["execute_by"]:
        usable = f"until {_moment(row['execute_by'], now)}"
    return _list(
        ("Asked at", _moment(row["opened_at"], now)),
        ("Decide by", _moment(row["decide_by"], now)),
        ("Then to be made", usable),
    )


def _votes(row: Mapping[str, Any], rule: Rule) -> str:
    given = "".join(f"<li>{_vote(vote)}</li>" for vote in row["votes"])
    people = "One person suffices." if rule.quorum == 1 else f"{rule.quorum} people must approve."
    if "quorum_reduced" in rule.flags:
        people = "More than one should approve, but there is only one who may; it will be noted."
    if "sole_operator" in rule.flags:
        people += " Its owner may approve it, being alone here; it will be noted."
    return f"<p>{people} One denial ends it.</p>" + (f"<ul>{given}</ul>" if given else "")


def _vote(vote: Mapping[str, Any]) -> str:
    said = "approved" if vote["verdict"] == "approve" else "denied"
    reason = f": {markup(vote['reason'])}" if vote["reason"] else ""
    at = datetime.fromisoformat(vote["voted_at"]).astimezone(UTC)
    return f"{markup(vote['name'] or vote['user_id'])} {said} at {at:%H:%M:%S} UTC{reason}"


def _features(row: Mapping[str, Any]) -> str:
    try:
        features = json.loads(row["features"] or b"null")
    except (ValueError, RecursionError):
        features = None
    known = features.items() if isinstance(features, dict) else ()
    told = _list(*((name.replace("_", " "), markup(_value(value))) for name, value in known))
    if not known:
        told = "<p>Its targets are not known here.</p>"
    elif features.get("overflow"):
        told += "<p><strong>It has more targets than are shown.</strong></p>"
    return f"{told}<p>Arguments stay in the data plane.</p>"


def _value(value: Any, depth: int = 0) -> str:
    """A feature in words; what is empty, zero or no says nothing."""
    match value:
        case str():
            return value
        case bool():
            return "yes" if value else ""
        case int() | float():
            return str(value) if value else ""
        case list() if depth < _DEEPEST:
            return "; ".join(filter(None, (_value(item, depth + 1) for item in value)))
        case dict() if depth < _DEEPEST:
            inner = ((name, _value(item, depth + 1)) for name, item in value.items())
            return ", ".join(
                text if name in {"name", "value"} else f"{name}: {text}"
                for name, text in inner
                if text
            )
        case _:
            return ""


def _decide(
    path: str, row: Mapping[str, Any], person: Person, say: Say, typed: Mapping[str, str]
) -> str:
    state = row["state"]
    if state not in {"pending", "approved"}:
        return ""
    if not say.may_decide:
        words = f"Your role, {escape(person.role)}, may look at this but not decide it."
        return _section("Your answer", f"<p>{words}</p>")
    if state == "approved":
        return _section("Your answer", _form(path, person, "revoke", _reason("revoke", typed)))
    forms = _approvals(path, person, typed) if say.eligible else (
        "<p>You asked for this call, or its agent is yours: somebody else has to approve it. "
        "You may deny it.</p>"
    )  # fmt: skip
    if say.voted == "approve":
        forms = "<p>You have approved it; others have to, too. You may still deny it.</p>"
    deny = _form(path, person, "deny", _reason("deny", typed, required=True))
    return _section("Your answer", forms + deny)


def _approvals(path: str, person: Person, typed: Mapping[str, str]) -> str:
    if (provider := person.provider_proves) is not None:
        link = f'<a href="{escape(provider)}">Prove it with your organization</a>'
        return (
            f"<p>An approval needs a fresh proof that it is you. {link}, then approve it here.</p>"
        )
    numbers = "".join(
        f'<label for="{name}">{label}</label><input type="number" id="{name}" name="{name}"'
        f' min="1" max="{most}" value="{escape(typed.get(name) or start)}" required>'
        for name, label, most, start in (
            ("minutes", f"For how many minutes (at most {MAX_MINUTES})", MAX_MINUTES, "15"),
            ("uses", f"How often at most (up to {MAX_USES} times)", MAX_USES, "5"),
        )
    )
    once = proof("once", person) + _reason("once", typed)
    grant = proof("grant", person) + numbers + _reason("grant", typed)
    return _form(path, person, "once", once) + _form(path, person, "grant", grant)


_ACTS: Final[Mapping[str, tuple[str, str]]] = {
    "once": ("Approve this one call", "Approve once"),
    "grant": ("Approve the same call for a while", "Approve for this time"),
    "deny": ("Deny it", "Deny"),
    "revoke": ("Take the approval back", "Revoke"),
}


def _form(path: str, person: Person, act: str, fields: str) -> str:
    title, button = _ACTS[act]
    buttons = proving_buttons(button, person) if act in {"once", "grant"} else submit(button)
    return f"""
<form method="post" action="{path}" aria-labelledby="{act}-title">
<h3 id="{act}-title">{title}</h3>
<input type="hidden" name="csrf" value="{escape(person.csrf)}">
<input type="hidden" name="act" value="{act}">{fields}
{buttons}
</form>"""


def _reason(act: str, typed: Mapping[str, str], *, required: bool = False) -> str:
    held = escape(typed.get("reason", "") if typed.get("act") == act else "")
    optional = "" if required else " (may be left empty)"
    return (
        f'<label for="{act}-reason">Reason; it is recorded{optional}</label>'
        f'<textarea id="{act}-reason" name="reason" rows="2" maxlength="500"'
        f"{' required' if required else ''}>\n{held}</textarea>"
    )


# The frame ----------------------------------------------------------------------------------------


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>{body}"


def _list(*entries: tuple[str, str]) -> str:
    rows = "".join(f"<dt>{markup(name)}</dt><dd>{value}</dd>" for name, value in entries if value)
    return f"<dl>{rows}</dl>"


def _joined(texts: Sequence[str] | Iterable[str]) -> str:
    return ", ".join(markup(text) for text in texts)


def _times(count: int | None) -> str:
    return "once" if count == 1 else f"{count} times"


def _moment(at: datetime, now: datetime) -> str:
    """A time in words, with how far it lies from now."""
    text = f"{at:%Y-%m-%d %H:%M:%S} UTC"
    away = f"in {_length(at - now)}" if at > now else f"{_length(now - at)} ago"
    return f'<time datetime="{at:%Y-%m-%dT%H:%M:%SZ}">{text}</time> ({away})'


def _length(span: timedelta) -> str:
    """The two largest units."""
    left = int(span.total_seconds())
    words: list[str] = []
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
        count, left = divmod(left, size)
        if count and len(words) < 2:
            words.append(f"{count} {unit}{'s' if count > 1 else ''}")
    return " ".join(words) or "a moment"
