"""`behavry sessions`: where you are signed in, and how to end it elsewhere."""

from cyclopts import App

from services.cli.commands.options import JsonOption, StateOption, control_of
from services.cli.output import emit, emit_text, say, table
from services.cli.rest import segment

app = App(name="sessions", help="Where you are signed in.")
_PATH = "/api/v1/me/sessions"


@app.command(name="list")
def list_sessions(*, state: StateOption = None, json: JsonOption = False) -> None:
    """List your own sessions."""
    items = control_of(state).get(_PATH)["items"]
    if json:
        emit(items)
    else:
        emit_text(table(items, "id", "kind", "method", "client_ip", "seen_at", "current"))


@app.command
def end(session: str, /, *, state: StateOption = None) -> None:
    """End one of them, by its id."""
    control_of(state).delete(f"{_PATH}/{segment(session)}")
    say(f"{session} has ended")


@app.command
def end_others(*, state: StateOption = None) -> None:
    """End all but the one that asks."""
    told = control_of(state).post(f"{_PATH}:end-others")
    say(f"{told['ended']} ended")
