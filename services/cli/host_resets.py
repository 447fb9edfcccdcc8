"""A link to another password, made on the host: for the admin whom nobody else can help.

The same link as control's own (password_resets.py there), which takes it.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from typing import Final

from services.cli import host_books
from services.cli.host_books import Host
from services.common.clock import SystemClock
from services.common.ids import uuid7

PREFIX: Final = "bhv_rst_"
LIFE: Final = timedelta(hours=1)
_END_OPEN: Final = """
UPDATE control.password_resets SET ended_at = $2
WHERE user_id = $1 AND used_at IS NULL AND ended_at IS NULL"""
_INSERT: Final = """
INSERT INTO control.password_resets
    (id, tenant_id, user_id, token_sha256, created_by, created_at, expires_at)
VALUES ($1, $2, $3, $4, 'host', $5, $6)"""


async def make(host: Host, username: str) -> str:
    """1. the person  2. the link, in the place of an open one  3. the record. Its token."""
    token = PREFIX + secrets.token_urlsafe(32)
    now_ns = SystemClock().now_ns()
    now = datetime.fromtimestamp(now_ns / 1e9, UTC)
    async with host_books.found(host, username) as person:  # 1
        await person.connection.execute(_END_OPEN, person.id, now)
        await person.connection.execute(  # 2
            _INSERT,
            uuid7(now_ns),
            person.tenant,
            person.id,
            hashlib.sha256(token.encode()).digest(),
            now,
            now + LIFE,
        )
        await person.record(  # 3
            "admin.user.password_reset_made", "reset-password", {"field": "token", "new": "set"}
        )
    return token
