"""Fixtures that every layer may ask for; each lives beside its fake."""

from tests.fakes.databases import (
    audit_database,
    database,
    entitlements_database,
    lending,
)
from tests.fakes.postgres import control_database, postgres
from tests.fakes.valkey import valkey

pytest_plugins = ("tests.house",)

__all__ = [
    "audit_database",
    "control_database",
    "database",
    "entitlements_database",
    "lending",
    "postgres",
    "valkey",
]
