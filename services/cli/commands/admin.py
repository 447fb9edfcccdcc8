"""`behavry admin`: who runs this installation. For whoever has its host: the state directory and
the database are the proof.
"""

import asyncio
from pathlib import Path

from cyclopts import App

from services.cli import asking
from services.cli.commands.options import ConfirmOption, StateOption, existing_state
from services.cli.output import CommandFailed, Exit, say
from services.cli.state import recall
from services.common.ids import PlaneId
from services.common.settings import environment

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


def _set(username: str, given: StateOption, *, wanted: bool) -> None:
    from services.cli import (  # noqa: PLC0415  # a database driver, for these two alone
        database,
        super_admins,
    )

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
    changed = asyncio.run(
        super_admins.set_super_admin(
            dsn,
            username,
            wanted=wanted,
            plane_id=PlaneId(remembered.plane_id),
            digest_keys=state.keys / "digest.keys",
        )
    )
    now = "is" if wanted else "is not"
    say(f"{username} {now} a super-admin" + ("" if changed else ", as before"))
