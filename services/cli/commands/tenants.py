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


FeatureOption = Annotated[list[str] | None, Parameter(negative=(), help="A feature's key.")]
WhenOption = Annotated[
    str | None, Parameter(help="RFC 3339, as 2027-01-31T00:00:00Z; else at once, or without end.")
]


@app.command
def features(
    tenant: str,
    /,
    *,
    reason: ReasonOption,
    enable: FeatureOption = None,
    disable: FeatureOption = None,
    clear: FeatureOption = None,
    starts_at: WhenOption = None,
    ends_at: WhenOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """What the tenant may use, and why. With --enable, --disable or --clear: change it first."""
    control = control_of(state)
    path = f"{_PATH}/{id_of(control, tenant)}/features"
    lists = {"enable": enable or [], "disable": disable or [], "clear": clear or []}
    if any(lists.values()):
        times = {"starts_at": starts_at, "ends_at": ends_at}
        body = lists | {name: value for name, value in times.items() if value}
        held = control.post_because(path, reason, body)
    else:
        held = control.get_because(path, reason)
    if json:
        emit(held)
        return
    emit_text(f"{held['plan']} ({held['status']})")
    emit_text(table(held["features"], "key", "allowed", "mode", "source", "required_plan"))
    if held["history"]["items"]:
        emit_text(
            table(held["history"]["items"], "created_at", "feature", "effect", "actor", "reason")
        )


@app.command
def plan(
    tenant: str,
    plan: str,
    /,
    *,
    reason: ReasonOption,
    expires_at: WhenOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Put the tenant on a plan, at once."""
    control = control_of(state)
    body = {"plan": plan} | ({"expires_at": expires_at} if expires_at else {})
    held = control.put_because(f"{_PATH}/{id_of(control, tenant)}/plan", reason, body)
    if json:
        emit(held)
    else:
        say(f"{tenant} is on {held['plan']} ({held['status']})")


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
