"""`behavry notifications`: who outside is told that a call waits, or that something was stopped.

A destination holds references to secrets (`secret://NAME`), never a value: NAME is a 0600 file in
`secrets` of the state directory.
"""

import uuid
from typing import Annotated, Any, Literal, TypeAlias

from cyclopts import App, Parameter

from services.cli import asking
from services.cli.commands.options import (
    ConfirmOption,
    JsonOption,
    LinesOption,
    StateOption,
    control_of,
)
from services.cli.output import CommandFailed, Exit, emit, emit_lines, emit_text, say, table
from services.cli.rest import Control, is_id, segment

app = App(name="notifications", help="Who outside is told that something waits or was stopped.")
add = App(name="add", help="Add a destination; then: notifications test NAME.")
app.command(add)

_PATH = "/api/v1/settings/notifications"
EventOption: TypeAlias = Annotated[
    list[str] | None,
    Parameter("--event", negative=(), help="Of what it is told; else of what fits its kind."),
]
PlaintextOption: TypeAlias = Annotated[
    bool, Parameter("--plaintext", negative=(), help="In clear, even to another machine.")
]


@app.command(name="list")
def list_destinations(*, state: StateOption = None, json: JsonOption = False) -> None:
    """List the destinations and whether notices reach them."""
    items = list(control_of(state).items(_PATH))
    if json:
        emit(items)
    else:
        rows = [{**item, "health": item["health"]["state"]} for item in items]
        emit_text(table(rows, "name", "kind", "enabled", "health", "events", "id"))


@app.command
def show(name: str, /, *, state: StateOption = None) -> None:
    """One destination as JSON."""
    control = control_of(state)
    emit(control.get(f"{_PATH}/{_id_of(control, name)}"))


@add.command
def email(
    name: str,
    /,
    *,
    host: Annotated[str, Parameter("--host", help="The mail server.")],
    sender: Annotated[str, Parameter("--sender", help="Whom the mail is from.")],
    to: Annotated[
        list[str], Parameter("--to", negative=(), help="Whom it is for; may be repeated.")
    ],
    port: Annotated[int, Parameter("--port")] = 587,
    security: Annotated[
        Literal["tls", "starttls", "none"], Parameter("--security", help="How the line is closed.")
    ] = "starttls",
    username: Annotated[str, Parameter("--username", help="Who signs in there.")] = "",
    password: Annotated[str, Parameter("--password", help="A reference: secret://NAME.")] = "",
    event: EventOption = None,
    plaintext: PlaintextOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Mail, through a server of yours."""
    settings = {
        "host": host,
        "port": port,
        "security": security,
        "username": username,
        "password": password,
        "sender": sender,
        "recipients": to,
        "plaintext": plaintext,
    }
    _add(name, "email", settings, event, state=state, as_json=json)


@add.command
def webhook(
    name: str,
    /,
    *,
    url: Annotated[str, Parameter("--url", help="Where notices are posted to.")],
    key: Annotated[str, Parameter("--key", help="A reference to what signs them: secret://NAME.")],
    event: EventOption = None,
    plaintext: PlaintextOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """A signed POST to a program of yours."""
    settings = {"url": url, "key": key, "plaintext": plaintext}
    _add(name, "webhook", settings, event, state=state, as_json=json)


@add.command
def slack(
    name: str,
    /,
    *,
    url: Annotated[str, Parameter("--url", help="A reference to the address: secret://NAME.")],
    event: EventOption = None,
    plaintext: PlaintextOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """A Slack channel, by its incoming webhook."""
    settings = {"url": url, "plaintext": plaintext}
    _add(name, "slack", settings, event, state=state, as_json=json)


@add.command
def pagerduty(
    name: str,
    /,
    *,
    routing_key: Annotated[
        str, Parameter("--routing-key", help="A reference to the key: secret://NAME.")
    ],
    severity: Annotated[
        Literal["critical", "error", "warning", "info"], Parameter("--severity")
    ] = "critical",
    url: Annotated[
        str | None, Parameter("--url", help="Another address than PagerDuty's own.")
    ] = None,
    event: EventOption = None,
    plaintext: PlaintextOption = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """A PagerDuty service, by its Events API."""
    settings: dict[str, Any] = {
        "routing_key": routing_key,
        "severity": severity,
        "plaintext": plaintext,
    }
    settings |= {} if url is None else {"url": url}
    _add(name, "pagerduty", settings, event, state=state, as_json=json)


@app.command(name="test")
def send_test(name: str, /, *, state: StateOption = None, json: JsonOption = False) -> None:
    """Send a notice that says that it is a test. Status 1: it did not arrive."""
    control = control_of(state)
    told = control.post(f"{_PATH}/{_id_of(control, name)}:test")
    if json:
        emit(told)
    if told["outcome"] != "delivered":
        status = f" (status {told['status']})" if told["status"] else ""
        raise CommandFailed(f"{name}: {told['code']}{status}")
    say(f"{name}: delivered in {told['duration_ms']} ms")


@app.command
def enable(name: str, /, *, state: StateOption = None) -> None:
    """Tell a destination again."""
    _switch(control_of(state), name, enabled=True)


@app.command
def disable(name: str, /, *, state: StateOption = None) -> None:
    """Tell a destination nothing; what waits for it is dropped."""
    _switch(control_of(state), name, enabled=False)


@app.command
def remove(name: str, /, *, confirm: ConfirmOption = None, state: StateOption = None) -> None:
    """Forget a destination, with what waits for it."""
    asking.confirmed(name, given=confirm, what=f"{name} will be told nothing any more.")
    control = control_of(state)
    path = f"{_PATH}/{_id_of(control, name)}"
    _, etag = control.get_tagged(path)
    control.delete(path, etag=etag)
    say(f"{name} is gone")


@app.command
def deliveries(name: str, /, *, state: StateOption = None, json: LinesOption = False) -> None:
    """What became of each notice of the last seven days, newest first."""
    control = control_of(state)
    items = control.items(f"{_PATH}/{_id_of(control, name)}/deliveries")
    if json:
        emit_lines(items)
    else:
        columns = ("planned_at", "event", "state", "attempts", "error", "id")
        emit_text(table(list(items), *columns))


@app.command
def redeliver(delivery: str, /, *, state: StateOption = None) -> None:
    """Send one notice again, by the id that `deliveries` shows."""
    path = f"{_PATH}/deliveries/{segment(delivery)}:redeliver"
    told = control_of(state).post(path, key=str(uuid.uuid4()))
    say(f"{told['event']} is {told['state']}")


def _add(
    name: str,
    kind: str,
    settings: dict[str, Any],
    events: list[str] | None,
    *,
    state: StateOption,
    as_json: bool,
) -> None:
    for field in ("password", "key", "routing_key", *(["url"] if kind == "slack" else [])):
        if settings.get(field) and not settings[field].startswith("secret://"):
            raise CommandFailed(
                f"the {field.replace('_', ' ')} is a reference, secret://NAME: put the value into"
                " a 0600 file NAME in `secrets` of the state directory",
                status=Exit.USAGE,
            )
    body = {"name": name, "kind": kind, "settings": settings}
    made = control_of(state).post(_PATH, body | ({} if events is None else {"events": events}))
    if as_json:
        emit(made)
    else:
        say(f"{name} is told of {', '.join(made['events'])}; try it: notifications test {name}")


def _switch(control: Control, name: str, *, enabled: bool) -> None:
    path = f"{_PATH}/{_id_of(control, name)}"
    _, etag = control.get_tagged(path)
    control.patch(path, {"enabled": enabled}, etag=etag)
    say(f"{name} is {'enabled' if enabled else 'disabled'}")


def _id_of(control: Control, name: str) -> str:
    if is_id(name):
        return name
    for one in control.items(_PATH, page_size=500):
        if one["name"] == name:
            return str(one["id"])
    raise CommandFailed(f"not_found: there is no destination {name!r}")
