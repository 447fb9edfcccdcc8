"""`behavry api-keys`: keys of machines that use the API. They never approve anything."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from services.cli import asking
from services.cli.commands.options import (
    ConfirmOption,
    JsonOption,
    PasswordFile,
    StateOption,
    control_of,
    posted,
)
from services.cli.output import emit, emit_text, say, table
from services.cli.rest import segment
from services.cli.secret_files import check_new, write_new

app = App(name="api-keys", help="Keys of machines that use the API.")
Level = Literal["viewer", "analyst", "policy_author", "admin"]
DaysOption = Annotated[int | None, Parameter("--days", help="How long it is good for.")]
OutOption = Annotated[Path | None, Parameter("--out", help="A new 0600 file for the key.")]


@app.command(name="list")
def list_keys(*, state: StateOption = None, json: JsonOption = False) -> None:
    """List the keys, without their secrets."""
    items = list(control_of(state).items("/api/v1/api-keys"))
    if json:
        emit(items)
    else:
        emit_text(table(items, "name", "id", "role", "expires_at", "revoked_at"))


@app.command
def create(
    name: str,
    /,
    *,
    role: Annotated[Level, Parameter("--role", help="At most your own.")],
    scope: Annotated[
        list[str] | None, Parameter("--scope", help="A resource, or RESOURCE:read; default all.")
    ] = None,
    days: DaysOption = None,
    out: OutOption = None,
    password_file: PasswordFile = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Make a key, shown once."""
    body = {"name": name, "role": role, "scopes": scope or []}
    _make(
        body,
        "/api/v1/api-keys",
        days=days,
        out=out,
        password_file=password_file,
        state=state,
        as_json=json,
    )


@app.command
def rotate(
    key: str,
    /,
    *,
    overlap_hours: Annotated[
        int, Parameter("--overlap-hours", help="How long the old one goes on, at most 24.")
    ] = 24,
    days: DaysOption = None,
    out: OutOption = None,
    password_file: PasswordFile = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Make the successor of a key, by its id; shown once."""
    path = f"/api/v1/api-keys/{segment(key)}:rotate"
    body = {"overlap_hours": overlap_hours}
    _make(body, path, days=days, out=out, password_file=password_file, state=state, as_json=json)


@app.command
def revoke(key: str, /, *, confirm: ConfirmOption = None, state: StateOption = None) -> None:
    """End a key, by its id."""
    asking.confirmed(key, given=confirm, what="Whatever uses this key stops working.")
    control_of(state).delete(f"/api/v1/api-keys/{segment(key)}")
    say(f"{key} has ended")


def _make(
    body: dict[str, Any],
    path: str,
    *,
    days: int | None,
    out: Path | None,
    password_file: Path | None,
    state: Path | None,
    as_json: bool,
) -> None:
    check_new(out)
    if days is not None:
        body["expires_in_days"] = days
    made = posted(path, body, state=state, password_file=password_file)
    if out is not None:
        write_new(out, made.pop("key"))
        made["key_file"] = str(out)
    if as_json:
        emit(made)
        return
    if out is None:
        emit_text(made["key"])
    say(f"{made['id']} is good until {made['expires_at']}")
