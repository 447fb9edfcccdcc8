"""What is said on the host itself, to the database, past control: who runs the installation, and
that an admin whom nobody else can help may choose another password. All of it is on record.
"""

from __future__ import annotations

import pytest

from services.cli import host_resets
from services.cli.host_books import Host
from services.cli.output import CommandFailed
from services.cli.super_admins import set_super_admin
from services.common.ids import PlaneId
from tests.integration.control.conftest import Rest
from tests.integration.control.escalated import joined, run, signed_in
from tests.integration.control.people import TENANTS
from tests.integration.control.test_problems import check
from tests.promises import promise


async def granted(rest: Rest, username: str, *, wanted: bool = True) -> bool:
    return await set_super_admin(host_of(rest), username, wanted=wanted)


def host_of(rest: Rest) -> Host:
    return Host(
        dsn=rest.database.admin_dsn,
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
    assert 200 == (await rest.get(TENANTS, key=admin.token, sees_neighbour=True)).status
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


@promise("people:links-told-once")
async def test_the_host_helps_an_admin_who_has_lost_their_password(rest: Rest) -> None:
    """On every plan: there may be nobody else, and no mail."""
    admin = await signed_in(rest)
    path, said = "/api/v1/auth/password:reset", {"password": "another password"}
    early, token = [await host_resets.make(host_of(rest), "Admin") for _ in range(2)]
    stale = await rest.post(path, said | {"token": early}, key=None)
    check(stale, 401, "password_reset_invalid")
    assert 200 == (await rest.post(path, said | {"token": token}, key=None)).status
    again = await rest.post(path, said | {"token": token}, key=None)
    check(again, 401, "password_reset_invalid")
    check(await rest.get("/api/v1/me", key=admin.token), 401, "session_expired")
    assert admin.id == (await signed_in(rest, "admin", "another password")).id

    recorded = await rest.records()
    made = [one for one in recorded if one["type"] == "admin.user.password_reset_made"]
    assert ["host", "host"] == [one["actor"]["kind"] for one in made]
    assert {admin.id} == {one["resource_id"] for one in made}
    assert token not in str(recorded)
    with pytest.raises(CommandFailed):
        await host_resets.make(host_of(rest), "nobody")
