"""`behavry limits`: how much agents may do per minute, how long people may take to decide."""

import copy
from typing import Annotated

from cyclopts import App, Parameter

from services.cli.commands.options import JsonOption, StateOption, control_of
from services.cli.output import CommandFailed, Exit, emit, say

app = App(name="limits", help="Rates of calls, and the clocks of escalations.")
_PATH = "/api/v1/settings/limits"


@app.command
def show(*, state: StateOption = None) -> None:
    """The limits as JSON."""
    emit(control_of(state).get(_PATH))


@app.command(name="set")
def change(
    *,
    agent_per_minute: Annotated[
        int | None, Parameter("--agent-per-minute", help="Calls of one agent.")
    ] = None,
    agent_burst: Annotated[
        int | None, Parameter("--agent-burst", help="How many of them at once.")
    ] = None,
    tenant_per_minute: Annotated[
        int | None, Parameter("--tenant-per-minute", help="Calls of all agents together.")
    ] = None,
    tool: Annotated[
        list[str] | None,
        Parameter(
            "--tool", negative=(), help="SERVER/TOOL=N calls of a tool per minute; 0: no own limit."
        ),
    ] = None,
    decide: Annotated[
        list[str] | None,
        Parameter(
            "--decide", negative=(), help="TIER=SECONDS to decide, for low, medium, high, critical."
        ),
    ] = None,
    execute_seconds: Annotated[
        int | None, Parameter("--execute-seconds", help="How long an approval may be used.")
    ] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Change what is named; the rest stays as it is."""
    control = control_of(state)
    held, etag = control.get_tagged(_PATH)
    wanted = copy.deepcopy(held)
    rates, clocks = wanted["rates"], wanted["escalations"]
    for name, value in (
        ("agent_per_minute", agent_per_minute),
        ("agent_burst", agent_burst),
        ("tenant_per_minute", tenant_per_minute),
    ):
        if value is not None:
            rates[name] = value
    for said in tool or []:
        _limit_tool(rates["tools"], said)
    for said in decide or []:
        tier, seconds = _number(said, "--decide is TIER=SECONDS")
        clocks["decide_seconds"][tier] = seconds
    if execute_seconds is not None:
        clocks["execute_seconds"] = execute_seconds
    if wanted == held:
        say("nothing to change")
        return
    made = control.put(_PATH, wanted, etag=etag)
    if json:
        emit(made)
    else:
        say("changed; agents notice within two seconds")


def _limit_tool(tools: dict[str, dict[str, int]], said: str) -> None:
    name, number = _number(said, "--tool is SERVER/TOOL=N")
    server, found, tool = name.partition("/")
    if not found:
        raise CommandFailed("--tool is SERVER/TOOL=N", status=Exit.USAGE)
    if number:
        tools.setdefault(server, {})[tool] = number
        return
    tools.get(server, {}).pop(tool, None)
    if tools.get(server) == {}:
        del tools[server]


def _number(said: str, form: str) -> tuple[str, int]:
    name, _, value = said.rpartition("=")
    if not name or not value.isdecimal():
        raise CommandFailed(form, status=Exit.USAGE)
    return name, int(value)
