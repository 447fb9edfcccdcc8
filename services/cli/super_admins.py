"""Who runs the installation, said on its host: the database itself, past control, which cannot."""

from __future__ import annotations

from typing import Final

from services.cli import host_books
from services.cli.host_books import Host

_SET: Final = "UPDATE control.users SET is_super_admin = $2 WHERE id = $1"


async def set_super_admin(host: Host, username: str, *, wanted: bool) -> bool:
    """1. the person  2. the right  3. the record, in one transaction. False: it was so already."""
    async with host_books.found(host, username) as person:  # 1
        if person.is_super_admin == wanted:
            return False
        await person.connection.execute(_SET, person.id, wanted)  # 2
        await person.record(  # 3
            f"admin.user.super_admin_{'granted' if wanted else 'revoked'}",
            "grant" if wanted else "revoke",
            {"field": "is_super_admin", "old": not wanted, "new": wanted},
        )
    return True
