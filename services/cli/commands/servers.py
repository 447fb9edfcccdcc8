"""`behavry servers`: the tool servers behind the gateway."""

from cyclopts import App

from services.cli import asking
from services.cli.commands.options import ConfirmOption, JsonOption, StateOption, control_of
from services.cli.commands.server_options import ServerOptions
from services.cli.commands.tools import list_tools
from services.cli.output import CommandFailed, Exit, emit, emit_text, say, table
from services.cli.rest import segment

app = App(name="servers", help="The tool servers behind the gateway.")


@app.command(name="list")
def list_servers(*, state: StateOption = None, json: JsonOption = False) -> None:
    """List the servers."""
    items = list(control_of(state).items("/api/v1/servers"))
    if json:
        emit(items)
    else:
        emit_text(table(items, "slug", "domain", "trust", "transport", "urls", "stdio"))


app.command(list_tools, name="tools")


@app.command
def show(server: str, /, *, state: StateOption = None) -> None:
    """One server as JSON."""
    emit(control_of(state).get(f"/api/v1/servers/{segment(server)}"))


@app.command
def add(
    slug: str,
    /,
    *,
    said: ServerOptions | None = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Put a server behind the gateway. Its tools stay out of sight until they are classified."""
    options = said or ServerOptions()
    reach = {"transport": "stdio"} if options.stdio is not None else {"transport": "http"}
    shipped = {"domain": slug, "trust": "untrusted", **reach}
    made = control_of(state).post("/api/v1/servers", {"slug": slug, **shipped, **options.body()})
    if json:
        emit(made)
    else:
        say(f"{slug} is behind the gateway; next: behavry tools list {slug}")


@app.command
def update(
    server: str,
    /,
    *,
    said: ServerOptions | None = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Change what is said of a server; the rest stays. Lists and headers are set as a whole."""
    body = (said or ServerOptions()).moved()
    if not body:
        raise CommandFailed("say what changes, such as --trust", status=Exit.USAGE)
    made = control_of(state).patch(f"/api/v1/servers/{segment(server)}", body)
    if json:
        emit(made)
    else:
        say(f"{server} is changed")


@app.command
def remove(server: str, /, *, confirm: ConfirmOption = None, state: StateOption = None) -> None:
    """Take a server away from the gateway, with what is known of its tools."""
    asking.confirmed(server, given=confirm, what=f"No agent will reach {server} any more.")
    control_of(state).delete(f"/api/v1/servers/{segment(server)}")
    say(f"{server} is gone")
