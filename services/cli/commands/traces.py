"""`behavry traces`: what agents asked for and what was decided."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from services.cli.commands.options import LinesOption, StateOption, control_of
from services.cli.output import emit, emit_lines, emit_text, table
from services.cli.rest import segment
from services.common.clock import rfc3339

app = App(name="traces", help="Decisions and their records, newest first.")
_COLUMNS = ("at", "id", "type", "agent", "server", "tool", "verdict", "reason")


@app.default
@app.command(name="list")
def traces(
    *,
    filter: Annotated[
        str | None,
        Parameter("--filter", help="Terms such as `agent:x verdict:deny -tool:read_file`."),
    ] = None,
    limit: Annotated[int, Parameter("--limit", help="How many, at most 500.")] = 20,
    state: StateOption = None,
    json: LinesOption = False,
) -> None:
    """List the newest records."""
    items = control_of(state).first("/api/v1/traces", limit, filter=filter)
    if json:
        emit_lines(items)
    else:
        emit_text(table([_row(item) for item in items], *_COLUMNS))


@app.command
def show(trace: str, /, *, state: StateOption = None) -> None:
    """Everything that the chain holds about one record, as JSON."""
    emit(control_of(state).get(f"/api/v1/traces/{segment(trace)}"))


def _row(item: dict[str, Any]) -> dict[str, Any]:
    """A trace as a line: who by name, when in words."""
    actor = item["agent"] or {}
    return {
        **item,
        "at": rfc3339(item["at"] * 1_000) if item["at"] else None,
        "agent": actor.get("name") or actor.get("id"),
    }
