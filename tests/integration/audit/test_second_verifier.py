"""The verifier in SQL hashes the same bytes as the one in Python: same golden vectors."""

from __future__ import annotations

from uuid import UUID

import pytest

from tests.fakes.audit import as_role
from tests.fakes.postgres import Database
from tests.unit.audit.vectors import VECTORS

pytestmark = pytest.mark.needs_postgres


async def test_golden_vectors_hash_alike_in_sql(audit_database: Database) -> None:
    async with as_role(audit_database, "behavry_audit_reader", None) as connection:
        hashed = [
            await connection.fetchval(
                "SELECT audit.event_hash_of($1, $2, $3, $4, $5, $6, $7)",
                UUID(vector["tenant"]),
                vector["chain"],
                vector["incarnation"],
                vector["seq"],
                vector["committed_at_us"],
                vector["previous_hash"],
                vector["body"],
            )
            for vector in VECTORS
        ]

    assert [vector["event_hash"] for vector in VECTORS] == [value.hex() for value in hashed]
