"""`behavry tenants`: for whoever runs the installation (`behavry admin grant`) and is signed in."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from services.cli import asking
from services.cli.commands.options import ConfirmOption, JsonOption, StateOption, control_of
from services.cli.output import CommandFailed, emit, emit_text, say, table
from services.cli.rest import Control, is_id

app = App(name="tenants", help="The tenants of this installation.")
ReasonOption = Annotated[
    str, Parameter("--reason", help="Why you go into it, 8 to 500 characters; it is recorded.")
]
_PATH = "/api/v1/tenants"


@app.command(name="list")
def list_tenants(*, state: StateOption = None, json: JsonOption = False) -> None:
    """List the tenants."""
    items = list(control_of(state).items(_PATH))
    if json:
        emit(items)
    else:
        emit_text(table(items, "slug", "id", "name", "status", "created_at"))


@app.command
def create(
    slug: str,
    /,
    *,
    name: Annotated[str, Parameter("--name", help="As people read it; default the slug.")] = "",
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Make a tenant, with nobody in it."""
    made = control_of(state).post(_PATH, {"slug": slug, "name": name or slug})
    if json:
        emit(made)
    else:
        say(f"{made['slug']} is {made['id']}")


@app.command
def show(tenant: str, /, *, reason: ReasonOption, state: StateOption = None) -> None:
    """One tenant as JSON, by slug or id."""
    control = control_of(state)
    emit(control.get_because(f"{_PATH}/{id_of(control, tenant)}", reason))


@app.command
def suspend(
    tenant: str,
    /,
    *,
    reason: ReasonOption,
    confirm: ConfirmOption = None,
    state: StateOption = None,
) -> None:
    """Let nobody of it in: no person, no key, no agent. Nothing is removed."""
    asking.confirmed(tenant, given=confirm, what=f"Nobody of {tenant} is let in any more.")
    told = _move(control_of(state), tenant, "suspend", reason)
    say(f"{told['slug']} is {told['status']}")


@app.command
def resume(tenant: str, /, *, reason: ReasonOption, state: StateOption = None) -> None:
    """Let it go on."""
    told = _move(control_of(state), tenant, "resume", reason)
    say(f"{told['slug']} is {told['status']}")


def id_of(control: Control, tenant: str) -> str:
    """The id of a tenant named by slug or id."""
    if is_id(tenant):
        return tenant
    found = [one["id"] for one in control.items(_PATH) if one["slug"] == tenant]
    if not found:
        raise CommandFailed(f"there is no tenant {tenant!r}")
    return str(found[0])


def _move(control: Control, tenant: str, verb: str, reason: str) -> Any:
    return control.post_because(f"{_PATH}/{id_of(control, tenant)}:{verb}", reason)
