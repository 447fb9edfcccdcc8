"""The approval page as HTML: a call that waits, and what can be said to it. No script; everything
works as plain forms.

Pure: rows and words in, text out. Each value that is not ours goes through `visible`, which escapes
it and spells out what cannot be seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any, Final

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
HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; "
        "base-uri 'none'"
    ),
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    # Under `no-referrer` a browser names no Origin with a form.
    "referrer-policy": "same-origin",
}
STYLE: Final = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #595959; --line: #767676;
  --link: #0b57d0; --bad: #a3120a; --note: #f1f3f4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f0f0f0; --paper: #161616; --soft: #b8b8b8; --line: #8c8c8c; --link: #8ab4f8;
    --bad: #ffb4ab; --note: #262626 } }
body { background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
  margin: 0 auto; max-width: 46rem; padding: 1rem }
header, footer { color: var(--soft); display: flex; flex-wrap: wrap; gap: 1rem;
  justify-content: space-between; align-items: center }
a { color: var(--link) }
h1 { font-size: 1.6rem; margin: 1rem 0 .5rem } h2 { font-size: 1.15rem; margin: 1.5rem 0 .5rem }
dl { display: grid; gap: .25rem 1rem; grid-template-columns: minmax(7rem, max-content) 1fr;
  margin: 0 } dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
code, .unseen { font-family: ui-monospace, monospace }
.unseen { border: 1px solid var(--bad); color: var(--bad); font-size: .85em }
.alert { border: 2px solid var(--bad); color: var(--bad); padding: .5rem 1rem }
.state { background: var(--note); border-left: .3rem solid var(--line); padding: .5rem 1rem }
form { margin: 0 }
main form { border: 1px solid var(--line); margin: .75rem 0; padding: .75rem 1rem }
label { display: block; margin: .5rem 0 .2rem } .hint { color: var(--soft) }
input, textarea, button { background: var(--paper); border: 1px solid var(--line);
  color: var(--ink); font: inherit; padding: .4rem .6rem }
textarea, input[type=text], input[type=password] { box-sizing: border-box; width: 100% }
button { cursor: pointer; font-weight: 600; margin-top: .75rem }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Who looks. `csrf` guards what they send."""

    name: str
    role: str
    tenant: str
    csrf: str = field(repr=False)
    may_decide: bool
    eligible: bool
    voted: str | None
    needs_password: bool
    #: Proves it by a one-time code instead.
    by_code: bool = False


def sign_in(path: str, *, token: str, error: str = "") -> str:
    """The same whatever the address names: nothing is told before the sign-in."""
    body = f"""
<h1>Sign in to decide</h1>
{_alert(error)}
<form method="post" action="{path}/sign-in">
<input type="hidden" name="token" value="{escape(token)}">
<label for="username">User name</label>
<input type="text" id="username" name="username" autocomplete="username" autocapitalize="none"
 spellcheck="false" maxlength="320" required>
<label for="password">Password</label>
<input type="password" id="password" name="password" autocomplete="current-password"
 maxlength="1024" required>
<label for="code">One-time code, if you have set them up</label>
<input type="text" id="code" name="code" autocomplete="one-time-code" inputmode="numeric"
 maxlength="6">
<button type="submit">Sign in</button>
</form>"""
    return _document("Sign in", body, failed=bool(error))


def failed(title: str, words: str, *, request_id: str) -> str:
    """Something went wrong, in words."""
    told = f"<p>Request <code>{escape(request_id)}</code></p>"
    return _document(title, f"<h1>{escape(title)}</h1>{_alert(words)}{told}", failed=True)


def not_found(path: str, viewer: Viewer) -> str:
    words = "<p>There is no such call here, or it is not yours to see.</p>"
    return _document("Not found", f"<h1>Not found</h1>{words}", header=_who(path, viewer))


def page(
    path: str,
    row: Mapping[str, Any],
    rule: Rule,
    viewer: Viewer,
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
            _alert(error),
            f'<p class="state" id="state">{_standing(row, rule, now)}</p>',
            _section("What is asked", _asked(row)),
            _section("Why a person is asked", _why(row)),
            _section("Time", _clocks(row, now)),
            _section("Votes", _votes(row, rule)),
            _section("What the call looks like", _features(row)),
            _decide(path, row, viewer, typed or {}),
        )
    )
    return _document(title, body, header=_who(path, viewer), failed=bool(error))


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


def _decide(path: str, row: Mapping[str, Any], viewer: Viewer, typed: Mapping[str, str]) -> str:
    state = row["state"]
    if state not in {"pending", "approved"}:
        return ""
    if not viewer.may_decide:
        words = f"Your role, {escape(viewer.role)}, may look at this but not decide it."
        return _section("Your answer", f"<p>{words}</p>")
    if state == "approved":
        return _section("Your answer", _form(path, viewer, "revoke", _reason("revoke", typed)))
    forms = _approvals(path, viewer, typed) if viewer.eligible else (
        "<p>You asked for this call, or its agent is yours: somebody else has to approve it. "
        "You may deny it.</p>"
    )  # fmt: skip
    if viewer.voted == "approve":
        forms = "<p>You have approved it; others have to, too. You may still deny it.</p>"
    deny = _form(path, viewer, "deny", _reason("deny", typed, required=True))
    return _section("Your answer", forms + deny)


def _approvals(path: str, viewer: Viewer, typed: Mapping[str, str]) -> str:
    numbers = "".join(
        f'<label for="{name}">{label}</label><input type="number" id="{name}" name="{name}"'
        f' min="1" max="{most}" value="{escape(typed.get(name) or start)}" required>'
        for name, label, most, start in (
            ("minutes", f"For how many minutes (at most {MAX_MINUTES})", MAX_MINUTES, "15"),
            ("uses", f"How often at most (up to {MAX_USES} times)", MAX_USES, "5"),
        )
    )
    once = _password("once", viewer) + _reason("once", typed)
    grant = _password("grant", viewer) + numbers + _reason("grant", typed)
    return _form(path, viewer, "once", once) + _form(path, viewer, "grant", grant)


_ACTS: Final[Mapping[str, tuple[str, str]]] = {
    "once": ("Approve this one call", "Approve once"),
    "grant": ("Approve the same call for a while", "Approve for this time"),
    "deny": ("Deny it", "Deny"),
    "revoke": ("Take the approval back", "Revoke"),
}


def _form(path: str, viewer: Viewer, act: str, fields: str) -> str:
    title, button = _ACTS[act]
    return f"""
<form method="post" action="{path}" aria-labelledby="{act}-title">
<h3 id="{act}-title">{title}</h3>
<input type="hidden" name="csrf" value="{escape(viewer.csrf)}">
<input type="hidden" name="act" value="{act}">{fields}
<button type="submit">{button}</button>
</form>"""


def _reason(act: str, typed: Mapping[str, str], *, required: bool = False) -> str:
    held = escape(typed.get("reason", "") if typed.get("act") == act else "")
    optional = "" if required else " (may be left empty)"
    return (
        f'<label for="{act}-reason">Reason; it is recorded{optional}</label>'
        f'<textarea id="{act}-reason" name="reason" rows="2" maxlength="500"'
        f"{' required' if required else ''}>\n{held}</textarea>"
    )


def _password(act: str, viewer: Viewer) -> str:
    if not viewer.needs_password:
        return ""
    if viewer.by_code:
        return (
            f'<label for="{act}-code">A one-time code</label>'
            f'<input type="text" id="{act}-code" name="code" autocomplete="one-time-code"'
            f' inputmode="numeric" maxlength="6" required aria-describedby="{act}-why">'
            f'<p class="hint" id="{act}-why">This approval needs a fresh proof that it is you.</p>'
        )
    return (
        '<input type="text" name="username" autocomplete="username" hidden readonly'
        f' value="{escape(viewer.name)}">'
        f'<label for="{act}-password">Your password, again</label>'
        f'<input type="password" id="{act}-password" name="password"'
        f' autocomplete="current-password" maxlength="1024" required'
        f' aria-describedby="{act}-why">'
        f'<p class="hint" id="{act}-why">This approval needs a fresh proof that it is you.</p>'
    )


# The frame ----------------------------------------------------------------------------------------


def _who(path: str, viewer: Viewer) -> str:
    who = f"Signed in as {markup(viewer.name)} at {markup(viewer.tenant)}"
    return f"""<span>{who}</span>
<form method="post" action="{path}/sign-out">
<input type="hidden" name="csrf" value="{escape(viewer.csrf)}">
<button type="submit">Sign out</button></form>"""


def _document(title: str, body: str, *, header: str = "", failed: bool = False) -> str:
    told = f"Error: {title}" if failed else title
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(told)} - Behavry</title>
<link rel="stylesheet" href="/approve/style.css">
</head>
<body>
<header><strong>Behavry</strong>{header}</header>
<main>{body}</main>
</body>
</html>
"""


def _alert(words: str) -> str:
    return f'<p class="alert" role="alert">{escape(words)}</p>' if words else ""


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
