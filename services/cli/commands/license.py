"""`behavry license`: the plan of this tenant and what it includes."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

from cyclopts import App, Parameter

from services.cli.commands.options import JsonOption, StateOption, control_of, state_root
from services.cli.output import CommandFailed, Exit, as_json, emit, emit_text, plain, say, table

app = App(name="license", help="The plan and its features.")
TokenFile = Annotated[
    Path, Parameter(allow_leading_hyphen=True, help="Holds the licence; - reads it from stdin.")
]
#: A licence as it is written, whole or cut short.
_TOKEN = re.compile(r"ey[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_.-]*")
_LAPSED = frozenset({"EXPIRED", "REVOKED"})


@app.command
def show(*, state: StateOption = None, json: JsonOption = False) -> None:
    """The plan, and each feature: allowed or not, and by which plan it could be had."""
    _show(control_of(state).get("/api/v1/license"), json=json)


@app.command
def activate(
    file: TokenFile,
    *,
    replace: Annotated[
        bool,
        Parameter("--replace", negative=(), help="Also where one issued later is active."),
    ] = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Put a licence, or a list of revoked ones, into effect. Status 3: signature or key; 2: it is
    no licence; 1: it is refused for another reason.
    """
    from services.cli.secret_files import read_secret  # noqa: PLC0415  # as below

    _check_name(file)
    body = {"key": read_secret(file)} | ({"replace": True} if replace else {})
    held = control_of(state).post("/api/v1/license/activate", body, key=str(uuid4()))
    _show(held, json=json)


def _show(held: dict[str, Any], *, json: bool) -> None:
    """Status 1 where the plan has lapsed."""
    if json:
        emit(held)
    else:
        until = f", until {held['expires_at']}" if held.get("expires_at") else ""
        emit_text(f"{held['plan']} ({held['status']}){until}")
        if scheduled := held.get("scheduled"):
            emit_text(f"{scheduled['plan']} from {scheduled['starts_at']}")
        emit_text(table(held["features"], "key", "allowed", "mode", "source", "required_plan"))
    if held["status"] in _LAPSED:
        raise CommandFailed("the plan has lapsed: see the modes of its features")


@app.command
def plans(*, state: StateOption = None, json: JsonOption = False) -> None:
    """Every plan and feature that there is."""
    catalogue = control_of(state).get("/api/v1/plan-features")
    if json:
        emit(catalogue)
    else:
        emit_text(table(catalogue["features"], "key", "plan", "name"))


# --- without a service ----------------------------------------------------------------------------
# What reads or makes licences is imported when it is used: `show` should not pay for it.


@app.command
def inspect(file: TokenFile, *, json: JsonOption = False) -> None:
    """What a licence says, without believing it."""
    from services.cli import licenses  # noqa: PLC0415  # see above

    _check_name(file)
    said = licenses.inspect(file)
    if not json:
        say("Not verified: anybody can write this.")
    _emit(said, json=json)


@app.command
def verify(
    file: TokenFile,
    *,
    tenant: Annotated[
        str | None, Parameter("--tenant", help="The tenant that it must be for.")
    ] = None,
    revocations: Annotated[
        Path | None, Parameter("--revocations", help="A list of revoked licences.")
    ] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Check a licence without a network. Status 0: in force; 1: lapsed, not yet valid, or not for
    here; 2: no licence; 3: signature or key.
    """
    from services.cli import licenses  # noqa: PLC0415  # see above

    _check_name(file)
    root = state_root(state)
    found = licenses.verify(file, root=root, tenant=tenant, revocations=revocations)
    for name in found["unchecked"]:
        say(f"Not checked: {name} (no installation in {root}).")
    _emit(found, json=json)


@app.command
def request(
    *,
    out: Annotated[Path | None, Parameter("--out", help="A new file for it.")] = None,
    state: StateOption = None,
) -> None:
    """What an issuer needs to make a licence for this installation alone."""
    from services.cli import licenses, secret_files  # noqa: PLC0415  # see above

    secret_files.check_new(out)
    asked = licenses.request(state_root(state))
    if out is None:
        emit(asked)
    else:
        secret_files.write_new(out, as_json(asked, indent=2))


@app.command
def issue(
    *,
    key: Annotated[Path, Parameter("--signer", help="PEM file with a private Ed25519 key.")],
    key_id: Annotated[str, Parameter("--kid", help="The name of its public half.")],
    id: Annotated[str, Parameter("--id", help="The licence's own id, never used before.")],
    customer: Annotated[str, Parameter("--customer")],
    issuer: Annotated[str, Parameter("--issuer", help="Who issues it.")],
    plan: Annotated[Literal["trial", "professional", "enterprise"], Parameter("--plan")],
    days: Annotated[int, Parameter("--days", help="For how long it is in force.")],
    begins_in_days: Annotated[int, Parameter("--begins-in-days")] = 0,
    grace_days: Annotated[int | None, Parameter("--grace-days", help="0 to 30.")] = None,
    tenant: Annotated[
        str | None, Parameter("--tenant", help="For one tenant; else for the installation.")
    ] = None,
    feature: Annotated[
        list[str] | None,
        Parameter("--feature", negative=(), help="key=true adds one, key=false withholds it."),
    ] = None,
    limit: Annotated[
        list[str] | None,
        Parameter("--limit", negative=(), help="agents=N, tenants=N or data_planes=N."),
    ] = None,
    model: Annotated[
        list[str] | None, Parameter("--model", negative=(), help="A deployment model.")
    ] = None,
    request: Annotated[
        Path | None, Parameter("--request", help="Bind it to the installation that asked.")
    ] = None,
    out: Annotated[Path | None, Parameter("--out", help="A new file for it.")] = None,
) -> None:
    """Make and sign a licence, where the private key is."""
    from services.cli import licenses, secret_files  # noqa: PLC0415  # see above

    secret_files.check_new(out)
    features = licenses.pairs(feature or [], "--feature")
    limits = licenses.pairs(limit or [], "--limit")
    token = licenses.issue(
        {
            "iss": issuer,
            "aud": "behavry",
            "sub": customer,
            "jti": id,
            **licenses.times(days=days, begins_in_days=begins_in_days),
            "scope": "tenant" if tenant else "installation",
            "tenant": tenant,
            "plan": plan,
            "features": {name: _flag(value) for name, value in features.items()},
            "limits": {name: _number(value) for name, value in limits.items()},
            "grace_days": grace_days,
            "models": model or [],
        },
        key=key,
        key_id=key_id,
        request=request,
    )
    if out is None:
        emit_text(token)
    else:
        secret_files.write_new(out, token)


def _check_name(file: Path) -> None:
    """No message quotes a licence that stands in the place of its file's name."""
    if _TOKEN.fullmatch(str(file)):
        raise CommandFailed(
            "name the file that holds the licence, not the licence", status=Exit.USAGE
        )


def _flag(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text, text)


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _emit(said: dict[str, Any], *, json: bool) -> None:
    if json:
        emit(said)
        return
    for name, value in said.items():
        if value not in (None, [], {}):
            emit_text(f"{name.replace('_', ' ')}: {plain(value)}")
