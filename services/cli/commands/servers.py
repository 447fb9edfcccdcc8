"""`behavry servers`: the tool servers behind the gateway."""

from typing import Annotated, Any, Literal, TypeAlias

from cyclopts import App, Parameter

from services.cli import asking
from services.cli.commands.options import ConfirmOption, JsonOption, StateOption, control_of
from services.cli.commands.tools import list_tools
from services.cli.output import CommandFailed, Exit, emit, emit_text, say, table
from services.cli.rest import segment

CredentialOption: TypeAlias = Annotated[
    str | None,
    Parameter(
        "--credential",
        help="HEADER=secret://NAME: a header of each request, its value from a secret's file.",
    ),
]
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
    url: Annotated[
        str | None, Parameter("--url", help="Where it listens (Streamable HTTP).")
    ] = None,
    stdio: Annotated[
        str | None,
        Parameter("--stdio", help="A program of stdio.toml in the state directory, by name."),
    ] = None,
    domain: Annotated[
        str | None,
        Parameter(
            "--domain", help="What permissions call it (`domain:read`); the slug unless said."
        ),
    ] = None,
    trust: Annotated[
        Literal["trusted", "untrusted"],
        Parameter("--trust", help="How far its answers are trusted."),
    ] = "untrusted",
    credential: CredentialOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Put a server behind the gateway. Its tools stay out of sight until they are classified."""
    body: dict[str, Any] = {"slug": slug, "domain": domain or slug, "trust": trust}
    if stdio is not None:
        body |= {"transport": "stdio", "stdio": stdio}
    else:
        body |= {"transport": "http", "urls": [] if url is None else [url]}
    if credential is not None:
        body["credential"] = _credential(credential)
    made = control_of(state).post("/api/v1/servers", body)
    if json:
        emit(made)
    else:
        say(f"{slug} is behind the gateway; next: behavry tools list {slug}")


@app.command
def update(
    server: str,
    /,
    *,
    url: Annotated[str | None, Parameter("--url", help="Where it listens now.")] = None,
    domain: Annotated[str | None, Parameter("--domain", help="What permissions call it.")] = None,
    trust: Annotated[
        Literal["trusted", "untrusted"] | None,
        Parameter("--trust", help="How far its answers are trusted."),
    ] = None,
    credential: CredentialOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Change what is said of a server; the rest stays."""
    said: dict[str, Any] = {"domain": domain, "trust": trust}
    if url is not None:
        said |= {"transport": "http", "urls": [url]}
    if credential is not None:
        said["credential"] = _credential(credential)
    body = {name: value for name, value in said.items() if value is not None}
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


def _credential(said: str) -> dict[str, str]:
    """A reference, never a value: control refuses what is none."""
    header, found, reference = said.partition("=")
    if not found:
        raise CommandFailed("--credential is HEADER=secret://NAME", status=Exit.USAGE)
    return {"kind": "header", "name": header, "value": reference}
