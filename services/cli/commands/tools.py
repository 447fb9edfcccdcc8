"""`behavry tools`: what a server's tools do, said by an admin. Until then an agent sees none of
them.
"""

from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from services.cli.commands.options import JsonOption, StateOption, control_of
from services.cli.output import CommandFailed, Exit, emit, emit_text, say, table
from services.cli.rest import Control, segment

app = App(name="tools", help="The tools of servers and what they do.")
Action = Literal["read", "write", "delete", "execute", "network", "admin"]


@app.command(name="list")
def list_tools(server: str, /, *, state: StateOption = None, json: JsonOption = False) -> None:
    """List a server's tools and their classes."""
    items = _tools(control_of(state), server)
    if json:
        emit(items)
    else:
        emit_text(table(items, "name", "state", "action", "category", "schema_hash"))


@app.command
def summary(*, state: StateOption = None, json: JsonOption = False) -> None:
    """How many tools of each server are in which state, and what agents read of them."""
    held = control_of(state).get("/api/v1/context-gate/summary")
    if json:
        emit(held)
        return
    rows = [*held["servers"], {"server": "all", **held["total"]}]
    states = ("approved", "hidden", "unclassified", "changed")
    emit_text(table(rows, "server", *states, "shown_estimated_tokens", "estimated_tokens"))


@app.command
def classify(
    server: str,
    /,
    *tools: str,
    action: Annotated[Action, Parameter("--action", help="What a call of these tools does.")],
    category: Annotated[
        str | None, Parameter("--category", help="A label of your own that policies can read.")
    ] = None,
    all_unclassified: Annotated[
        bool, Parameter("--all", negative=(), help="Every tool that is not classified yet.")
    ] = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Say what tools do and approve them as they are now."""
    control = control_of(state)
    names = list(tools)
    if all_unclassified:
        names += [one["name"] for one in _tools(control, server) if one["state"] == "unclassified"]
    if not names:
        raise CommandFailed("name at least one tool, or --all", status=Exit.USAGE)
    said = {"action": action} | ({} if category is None else {"category": category})
    path = f"/api/v1/servers/{segment(server)}/tools"
    if len(names) == 1:
        made = control.put(f"{path}/{segment(names[0])}", said)
        results = [{"tool": names[0], "status": made["state"]}]
    else:
        body = {"items": [{"tool": name, **said} for name in names]}
        results = control.post(f"{path}:classify", body)["items"]
    _report(results, as_json=json)


@app.command
def hide(server: str, tool: str, /, *, state: StateOption = None, json: JsonOption = False) -> None:
    """Take a tool out of every agent's sight."""
    control = control_of(state)
    known = next((one for one in _tools(control, server) if one["name"] == tool), None)
    action = "read" if known is None or known["action"] == "unclassified" else known["action"]
    path = f"/api/v1/servers/{segment(server)}/tools/{segment(tool)}"
    made = control.put(path, {"action": action, "state": "hidden"})
    _report([{"tool": tool, "status": made["state"]}], as_json=json)


def _tools(control: Control, server: str) -> list[dict[str, Any]]:
    return list(control.items(f"/api/v1/servers/{segment(server)}/tools"))


def _report(results: list[dict[str, Any]], *, as_json: bool) -> None:
    failed = [one for one in results if one["status"] == "refused"]
    if as_json:
        emit(results)
    else:
        for one in results:
            say(f"{one['tool']}: {one['status']} {one.get('code') or ''}".rstrip())
    if failed:
        raise CommandFailed(f"{len(failed)} of {len(results)} were refused")
