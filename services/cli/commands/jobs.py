"""`behavry jobs`: the state of work that outlives its request."""

from cyclopts import App

from services.cli.commands.options import StateOption, control_of
from services.cli.output import emit
from services.cli.rest import segment

app = App(name="jobs", help="Work that outlives its request.")


@app.command
def show(job: str, /, *, state: StateOption = None) -> None:
    """One job as JSON: its state, progress and result."""
    emit(control_of(state).get(f"/api/v1/jobs/{segment(job)}"))
