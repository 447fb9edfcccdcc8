"""Everybody who may come to control's door, as rows: people of each role in either tenant, their
sessions, machines, and whoever runs the installation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from uuid import uuid4

import asyncpg

from services.common.ids import TenantId
from services.control import api_keys, sessions
from tests.integration.control.conftest import PUBLIC, Rest
from tests.integration.control.route_table import LEVELS

Home = Literal["own", "other"]
WHY: Final = "a test asks of everything"
_USER: Final = """
INSERT INTO control.users (id, tenant_id, username, role, status, created_at, is_super_admin)
VALUES ($1, $2, $3, $4, 'active', $5, $6)"""
_SESSION: Final = """
INSERT INTO control.user_sessions (token_sha256, tenant_id, user_id, kind, created_at, seen_at,
    stepped_up_at, id, client_ip, method)
VALUES ($1, $2, $3, $4, $5, $5, $6, $7, '127.0.0.1', 'password')"""
_KEY: Final = """
INSERT INTO control.api_keys (id, tenant_id, name, role, prefix, secret_sha256, created_by,
    created_at, expires_at, scopes)
VALUES ($1, $2, $3, $4, $5, $6, 'test', $7, $8, $9)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """`level` 0: nobody. `own_page`: False, a browser's request without what its page would say.
    `reason`: sends one wherever it goes.
    """

    name: str
    level: int = 0
    home: Home = "own"
    human: bool = False
    operator: bool = False
    fresh: bool = True
    own_page: bool = True
    reason: bool = False
    scopes: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    def with_reason(self) -> Who:
        headers = {**self.headers, "x-behavry-reason": WHY}
        return replace(self, name=f"{self.name}, with a reason", reason=True, headers=headers)


@dataclass(kw_only=True)
class Registry:
    """Writes rows past row-level security; nobody's password is hashed."""

    connection: asyncpg.Connection[asyncpg.Record]
    rest: Rest
    tenants: dict[str, TenantId]

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.rest.clock.now_ns() / 1e9, UTC)

    async def person(
        self,
        name: str,
        role: str,
        home: Home = "own",
        *,
        operator: bool = False,
        fresh: bool = True,
        browser: bool = False,
        own_page: bool = True,
    ) -> Who:
        user, tenant = uuid4(), self.tenants[home]
        kind: sessions.Kind = "browser" if browser else "bearer"
        token = sessions.new_token(kind)
        proven = self.now - timedelta(minutes=0 if fresh else 6)
        await self.connection.execute(
            _USER, user, tenant, name.replace(" ", "-"), role, self.now, operator
        )
        await self.connection.execute(
            _SESSION, sessions.stored(token), tenant, user, kind, self.now, proven, uuid4()
        )
        headers = {"authorization": f"Bearer {token}"}
        if browser:
            headers = {"cookie": f"{sessions.COOKIE_LOOPBACK}={token}"}
            if own_page:
                headers |= {"origin": PUBLIC, sessions.CSRF_HEADER: sessions.csrf_token(token)}
        return Who(
            name=name, level=LEVELS[role], home=home, human=True, operator=operator, fresh=fresh,
            own_page=own_page, headers=headers,
        )  # fmt: skip

    async def machine(self, name: str, role: str, home: Home = "own", *scopes: str) -> Who:
        key = api_keys.new_key("local")
        await self.connection.execute(
            _KEY, key.id, self.tenants[home], name, role, key.prefix, key.secret_sha256, self.now,
            self.now + timedelta(days=1), list(scopes),
        )  # fmt: skip
        headers = {"authorization": f"Bearer {key.text}"}
        return Who(name=name, level=LEVELS[role], home=home, scopes=scopes, headers=headers)


NOBODY: Final = Who(name="nobody")
