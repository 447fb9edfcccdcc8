"""Who runs the installation is said on its host, to the database, and is on record."""

from __future__ import annotations

import pytest

from services.cli.output import CommandFailed
from services.cli.super_admins import set_super_admin
from services.common.ids import PlaneId
from tests.integration.control.conftest import Rest
from tests.integration.control.escalated import joined, run, signed_in
from tests.integration.control.people import TENANTS
from tests.integration.control.test_problems import check
from tests.promises import promise


async def granted(rest: Rest, username: str, *, wanted: bool = True) -> bool:
    return await set_super_admin(
        rest.database.admin_dsn,
        username,
        wanted=wanted,
        plane_id=PlaneId("dp-local"),
        digest_keys=rest.state / "keys" / "digest.keys",
    )


@promise("people:super-admin-by-the-host")
async def test_the_host_makes_a_super_admin_and_takes_it_back_with_the_next_request(
    rest: Rest,
) -> None:
    admin = await signed_in(rest)
    check(await rest.get(TENANTS, key=admin.token), 403, "role_required")
    assert [True, False] == [await granted(rest, "Admin"), await granted(rest, "admin")]
    assert 200 == (await rest.get(TENANTS, key=admin.token)).status
    check(await rest.get(TENANTS), 403, "role_required")  # a key of the same tenant's
    assert await granted(rest, "admin", wanted=False)
    check(await rest.get(TENANTS, key=admin.token), 403, "role_required")

    recorded = [one for one in await rest.records() if "super_admin_" in one["type"]]
    assert ["admin.user.super_admin_granted", "admin.user.super_admin_revoked"] == [
        one["type"] for one in recorded
    ]
    assert {admin.id} == {one["resource_id"] for one in recorded}
    assert {"host"} == {one["actor"]["kind"] for one in recorded}


@pytest.mark.parametrize("name", ["nobody", "", "%", "anna"])
async def test_who_is_not_there_or_not_active_is_not_made_one(rest: Rest, name: str) -> None:
    anna = await joined(rest, "anna", "viewer")
    await run(rest, "UPDATE control.users SET status = 'deactivated' WHERE id = $1", anna.id)
    with pytest.raises(CommandFailed):
        await granted(rest, name)

    assert not [one for one in await rest.records() if "super_admin_" in one["type"]]
