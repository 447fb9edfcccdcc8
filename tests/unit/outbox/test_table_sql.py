"""The table outbox's own text and the migration that carries it are one."""

from __future__ import annotations

from pathlib import Path

from services.common.outbox.table import table_sql

ROOT = Path(__file__).resolve().parents[3]


def test_the_migration_makes_the_table_that_the_code_expects() -> None:
    migration = ROOT / "services" / "control" / "migrations" / "0003_outbox.sql"

    assert table_sql() == migration.read_text("utf-8")
