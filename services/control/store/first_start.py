"""What exists before anybody signs in: the first tenant, its class of agents, the admin and the
admin's API key. Made once; a later start changes none of it.

The key file is looked at on each start, so that an operator who lost the key deletes the file, gets
a new one made, and is let in again; a key that was ended stays ended.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Final

from services.common.clock import Clock
from services.common.ids import NIL_TENANT, TenantId, uuid7
from services.common.postgres.pool import Pool, tenant_tx
from services.common.settings import SettingsError
from services.control import agents as rules
from services.control import api_keys
from services.control.passwords import Passwords
from services.control.roles import Role
from services.control.store import keys, people, roles, tenants
from services.control.store.moments import moment
from services.control.store.tenants import Tenant

FIRST_TENANT: Final = "default"
ADMIN: Final = "admin"
_CREATED_BY: Final = "first start"


async def ensure(
    pool: Pool, clock: Clock, passwords: Passwords, *, password_file: Path, api_key_file: Path
) -> Tenant:
    """1. the tenant  2. its default class  3. the admin  4. the admin's key.

    Raises SettingsError for a file that is needed and cannot be used.
    """
    now = moment(clock.now_ns())
    async with tenant_tx(pool, NIL_TENANT) as connection:  # 1
        tenant = await tenants.ensure(
            connection,
            id=TenantId(uuid7(clock.now_ns())),
            slug=FIRST_TENANT,
            name="Default",
            sole_operator=True,  # whoever starts an installation is alone in it at first
            now=now,
        )
    async with tenant_tx(pool, tenant.id) as connection:
        await roles.ensure_class(  # 2
            connection, tenant.id, name=rules.DEFAULT_CLASS, critical=True
        )
        if not await people.has_users(connection):  # 3
            await people.insert_user(
                connection,
                tenant.id,
                id=uuid7(clock.now_ns()),
                username=ADMIN,
                role=Role.ADMIN.key,
                password_hash=await _hashed(passwords, password_file),
                now=now,
            )
        key = _key(api_key_file)
        if key is not None:  # 4
            await keys.insert(
                connection,
                tenant.id,
                key,
                name="admin (state directory)",
                role=Role.ADMIN.key,
                created_by=_CREATED_BY,
                now=now,
                expires_at=now + timedelta(seconds=api_keys.MAX_LIFE_S),
            )
    return tenant


async def _hashed(passwords: Passwords, file: Path) -> str:
    try:
        text = await asyncio.to_thread(file.read_text)
        return await passwords.hash(text.strip())
    except (OSError, ValueError) as bad:
        raise SettingsError(
            f"BEHAVRY_CONTROL_ADMIN_PASSWORD_FILE='{file}' cannot be used. "
            "Allowed: a readable file with a password of at least 12 characters."
        ) from bad


def _key(file: Path) -> api_keys.ApiKey | None:
    """None when there is no file: an installation may do without the key."""
    if not file.exists():
        return None
    key = api_keys.parse(file.read_text().strip())
    if key is None:
        raise SettingsError(
            f"BEHAVRY_CONTROL_ADMIN_API_KEY_FILE='{file}' cannot be used. "
            "Allowed: a file with one API key, bhv_sk_..."
        )
    return key
