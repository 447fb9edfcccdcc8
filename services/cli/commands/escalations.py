"""`behavry escalations`: the calls that wait for a person, and the person's answer.

Answers need `behavry login`; machines are refused. Control asks for the password again where the
risk is high.
"""

from typing import Annotated, Any

from cyclopts import App, Parameter

from services.cli.commands.options import (
    LinesOption,
    PasswordFile,
    StateOption,
    control_of,
    control_url,
    existing_state,
)
from services.cli.output import CommandFailed, Exit, emit_lines, emit_text, plain, say, table
from services.cli.person import signed_in
from services.cli.rest import segment

app = App(name="escalations", help="Calls that wait for a person.")
_COLUMNS = ("id", "state", "agent", "server", "tool", "resource", "codes", "quorum", "decide_by")
ReasonOption = Annotated[str, Parameter("--reason", help="Why; it is recorded.")]


@app.command(name="list")
def list_escalations(
    *,
    filter: Annotated[
        str | None, Parameter("--filter", help="Terms such as `state:pending agent:x tool:y`.")
    ] = None,
    limit: Annotated[int, Parameter("--limit", help="How many, at most 500.")] = 50,
    state: StateOption = None,
    json: LinesOption = False,
) -> None:
    """List what waits, newest first; with --filter also what was decided."""
    items = control_of(state).first("/api/v1/escalations", limit, filter=filter or "state:pending")
    if json:
        emit_lines(items)
    else:
        rows = [{**item, "agent": item["agent"]["name"]} for item in items]
        emit_text(table(rows, *_COLUMNS))


@app.command
def show(escalation: str, /, *, state: StateOption = None, json: LinesOption = False) -> None:
    """Who wants what, why it waits, and who has answered."""
    control = control_of(state)
    item = control.get(f"/api/v1/escalations/{segment(escalation)}")
    if json:
        emit_lines([item])
    else:
        emit_text(_told(item, page=f"{control.url}/approve/{item['id']}"))


@app.command
def approve(
    escalation: str,
    /,
    *,
    minutes: Annotated[
        int | None,
        Parameter("--minutes", help="A grant: the same call again for so long; else once."),
    ] = None,
    uses: Annotated[
        int | None, Parameter("--uses", help="How often a grant may be used, at most 20.")
    ] = None,
    reason: ReasonOption = "",
    password_file: PasswordFile = None,
    state: StateOption = None,
    json: LinesOption = False,
) -> None:
    """Let the call run, once unless --minutes says more."""
    if uses is not None and minutes is None:
        raise CommandFailed("--uses needs --minutes", status=Exit.USAGE)
    body: dict[str, Any] = {"mode": "once" if minutes is None else "grant", "reason": reason}
    said = {"minutes": minutes, "uses": uses}
    body |= {name: value for name, value in said.items() if value is not None}
    _answer(escalation, "approve", body, password_file=password_file, state=state, as_lines=json)


@app.command
def deny(
    escalation: str,
    /,
    *,
    reason: Annotated[str, Parameter("--reason", help="Why; the agent is not told.")],
    password_file: PasswordFile = None,
    state: StateOption = None,
    json: LinesOption = False,
) -> None:
    """Refuse the call; one is enough."""
    body = {"reason": reason}
    _answer(escalation, "deny", body, password_file=password_file, state=state, as_lines=json)


@app.command
def revoke(
    escalation: str,
    /,
    *,
    reason: ReasonOption = "",
    password_file: PasswordFile = None,
    state: StateOption = None,
    json: LinesOption = False,
) -> None:
    """Take back an approval that is not used up."""
    body = {"reason": reason}
    _answer(escalation, "revoke", body, password_file=password_file, state=state, as_lines=json)


@app.command
def cancel(
    escalation: str,
    /,
    *,
    reason: ReasonOption = "",
    password_file: PasswordFile = None,
    state: StateOption = None,
    json: LinesOption = False,
) -> None:
    """Close what need not be decided any more."""
    body = {"reason": reason}
    _answer(escalation, "cancel", body, password_file=password_file, state=state, as_lines=json)


def _answer(
    escalation: str,
    verb: str,
    body: dict[str, Any],
    *,
    password_file: PasswordFile,
    state: StateOption,
    as_lines: bool,
) -> None:
    found = existing_state(state)
    person = signed_in(found, control_url=control_url(found), password_file=password_file)
    item = person.act(f"/api/v1/escalations/{segment(escalation)}:{verb}", body)
    if as_lines:
        emit_lines([item])
        return
    what = plain(f"{item['agent']['name']} {item['server']}/{item['tool']}")
    if verb == "approve" and item["state"] == "pending":
        given = sum(vote["verdict"] == "approve" for vote in item["votes"])
        say(f"{what}: {given} of {item['quorum']} have approved; others have to, too")
    else:
        say(f"{what}: {item['state']}")


def _told(item: dict[str, Any], *, page: str) -> str:
    """One escalation for people. What agents wrote is shown as text, control characters escaped.
    `page` is where a browser shows the same.
    """
    how = item.get("approval", {})
    rows = [
        ("state", item["state"]),
        ("agent", f"{item['agent']['name']} ({item['agent']['class']})"),
        ("asked for by", (item["requester"] or {}).get("id")),
        ("call", f"{item['server']} / {item['tool']} ({item['action']})"),
        ("resource", item["resource"]),
        ("codes", ", ".join(item["codes"])),
        ("reason", item["reason"]),
        ("risk", item["tier"]),
        ("needs", f"{how.get('quorum', item['quorum'])} of those who may approve"),
        ("opened", item["opened_at"]),
        ("decide by", item["decide_by"]),
        ("execute by", item["execute_by"]),
        ("page", page if item["state"] == "pending" else None),
        *((f"vote of {vote['name']}", vote["verdict"]) for vote in item["votes"]),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {plain(value)}" for name, value in rows if value)
