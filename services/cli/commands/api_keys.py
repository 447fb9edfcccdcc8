"""`behavry api-keys`: keys of machines that use the API. They never approve anything."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from services.cli import asking
from services.cli.commands.options import ConfirmOption, JsonOption, StateOption, control_of
from services.cli.output import emit, emit_text, say, table
from services.cli.rest import segment
from services.cli.secret_files import check_new, write_new

app = App(name="api-keys", help="Keys of machines that use the API.")
Level = Literal["viewer", "analyst", "policy_author", "admin"]


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
    days: Annotated[int | None, Parameter("--days", help="How long it is good for.")] = None,
    out: Annotated[Path | None, Parameter("--out", help="A new 0600 file for the key.")] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Make a key, shown once."""
    check_new(out)
    body = {"name": name, "role": role} | ({} if days is None else {"expires_in_days": days})
    made = control_of(state).post("/api/v1/api-keys", body)
    if out is not None:
        write_new(out, made.pop("key"))
        made["key_file"] = str(out)
    if json:
        emit(made)
        return
    if out is None:
        emit_text(made["key"])
    say(f"{made['id']} is good until {made['expires_at']}")


@app.command
def revoke(key: str, /, *, confirm: ConfirmOption = None, state: StateOption = None) -> None:
    """End a key, by its id."""
    asking.confirmed(key, given=confirm, what="Whatever uses this key stops working.")
    control_of(state).delete(f"/api/v1/api-keys/{segment(key)}")
    say(f"{key} has ended")
