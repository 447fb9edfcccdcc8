"""`behavry license`: the plan of this tenant and what it includes."""

from cyclopts import App

from services.cli.commands.options import JsonOption, StateOption, control_of
from services.cli.output import emit, emit_text, table

app = App(name="license", help="The plan and its features.")


@app.command
def show(*, state: StateOption = None, json: JsonOption = False) -> None:
    """The plan, and each feature: allowed or not, and by which plan it could be had."""
    held = control_of(state).get("/api/v1/license")
    if json:
        emit(held)
        return
    emit_text(f"{held['plan']} ({held['status']})")
    emit_text(table(held["features"], "key", "allowed", "mode", "source", "required_plan"))


@app.command
def plans(*, state: StateOption = None, json: JsonOption = False) -> None:
    """Every plan and feature that there is."""
    catalogue = control_of(state).get("/api/v1/plan-features")
    if json:
        emit(catalogue)
    else:
        emit_text(table(catalogue["features"], "key", "plan", "name"))
