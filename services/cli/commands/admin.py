"""`behavry admin`: who runs this installation. For whoever has its host: the state directory and
the database are the proof.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from services.cli import asking
from services.cli.commands.options import ConfirmOption, StateOption, existing_state
from services.cli.output import CommandFailed, Exit, say
from services.cli.secret_files import check_new, keep_token, show_token
from services.cli.state import recall
from services.common.ids import PlaneId
from services.common.settings import environment

if TYPE_CHECKING:
    from services.cli.host_books import Host

app = App(name="admin", help="Who runs this installation, in all tenants.")


@app.command
def grant(username: str, /, *, confirm: ConfirmOption = None, state: StateOption = None) -> None:
    """Let somebody into every tenant of this installation. It is recorded."""
    asking.confirmed(username, given=confirm, what=f"{username} may go into every tenant.")
    _set(username, state, wanted=True)


@app.command
def revoke(username: str, /, *, state: StateOption = None) -> None:
    """Take that back. It is recorded."""
    _set(username, state, wanted=False)


@app.command
def reset_password(
    username: str,
    /,
    *,
    out: Annotated[Path | None, Parameter("--out", help="A new 0600 file for the token.")] = None,
    state: StateOption = None,
) -> None:
    """Make a token for somebody who has lost their password, good for an hour and once: for the
    admin whom no other one can help. It is recorded. `behavry password reset` takes it.
    """
    from services.cli import host_resets  # noqa: PLC0415  # as below

    check_new(out)
    made = {"token": asyncio.run(host_resets.make(_host(state), username))}
    keep_token(made, out)
    show_token(made)
    say(f"{username} may choose another password within the hour")


def _set(username: str, given: StateOption, *, wanted: bool) -> None:
    from services.cli import super_admins  # noqa: PLC0415  # as below

    changed = asyncio.run(super_admins.set_super_admin(_host(given), username, wanted=wanted))
    now = "is" if wanted else "is not"
    say(f"{username} {now} a super-admin" + ("" if changed else ", as before"))


def _host(given: StateOption) -> "Host":
    from services.cli import database, host_books  # noqa: PLC0415  # a database driver, for these

    state = existing_state(given)
    remembered = recall(state)
    dsn = database.address(
        state.root,
        run_dir=Path(remembered.run_dir or state.root / "run"),
        passfiles=state.passfiles,
        named=environment().get("BEHAVRY_DB_URL"),
    )
    if dsn is None:
        raise CommandFailed(
            "the database's address is not known here; name it with BEHAVRY_DB_URL",
            status=Exit.UNREACHABLE,
        )
    return host_books.Host(
        dsn=dsn,
        plane_id=PlaneId(remembered.plane_id),
        digest_keys=state.keys / "digest.keys",
    )
