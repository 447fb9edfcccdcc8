"""`behavry servers`: the tool servers behind the gateway."""

from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from services.cli.commands.options import JsonOption, StateOption, control_of
from services.cli.output import emit, emit_text, say, table

app = App(name="servers", help="The tool servers behind the gateway.")


@app.command(name="list")
def list_servers(*, state: StateOption = None, json: JsonOption = False) -> None:
    """List the servers."""
    items = list(control_of(state).items("/api/v1/servers"))
    if json:
        emit(items)
    else:
        emit_text(table(items, "slug", "domain", "trust", "transport", "urls", "stdio"))


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
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Put a server behind the gateway. Its tools stay out of sight until they are classified."""
    body: dict[str, Any] = {"slug": slug, "domain": domain or slug, "trust": trust}
    if stdio is not None:
        body |= {"transport": "stdio", "stdio": stdio}
    else:
        body |= {"transport": "http", "urls": [] if url is None else [url]}
    made = control_of(state).post("/api/v1/servers", body)
    if json:
        emit(made)
    else:
        say(f"{slug} is behind the gateway; next: behavry tools list {slug}")
