"""`behavry roles`: what agents' roles permit. A permission is `<domain>:<action>`."""

from cyclopts import App

from services.cli.commands.options import JsonOption, StateOption, control_of
from services.cli.output import emit, emit_text, say, table
from services.cli.rest import segment

app = App(name="roles", help="Agents' roles and what they permit.")


@app.command(name="list")
def list_roles(*, state: StateOption = None, json: JsonOption = False) -> None:
    """List the roles."""
    items = list(control_of(state).items("/api/v1/roles"))
    if json:
        emit(items)
    else:
        emit_text(table(items, "name", "permissions"))


@app.command
def grant(
    role: str,
    /,
    *permissions: str,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Add permissions such as `notes:read` to a role; a role that does not exist is made."""
    control = control_of(state)
    known = {one["name"]: one["permissions"] for one in control.items("/api/v1/roles")}
    wanted = list(dict.fromkeys([*known.get(role, []), *permissions]))
    made = control.put(f"/api/v1/roles/{segment(role)}", {"permissions": wanted})
    if json:
        emit(made)
    else:
        say(f"{role}: {', '.join(made['permissions'])}")


@app.command
def revoke(
    role: str,
    /,
    *permissions: str,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Take permissions away from a role."""
    control = control_of(state)
    path = f"/api/v1/roles/{segment(role)}"
    known, etag = control.get_tagged(path)
    wanted = [one for one in known["permissions"] if one not in permissions]
    made = control.put(path, {"permissions": wanted}, etag=etag)
    if json:
        emit(made)
    else:
        say(f"{role}: {', '.join(made['permissions']) or 'nothing'}")
