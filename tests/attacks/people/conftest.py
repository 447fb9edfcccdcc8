"""Control on a real PostgreSQL, as whoever wants to be somebody else finds it."""

from tests.integration.control.conftest import (
    cheap_passwords,
    clock,
    control_database,
    database,
    keys_known,
    made_state,
    other_key,
    rest,
    settings,
    state,
)

__all__ = [
    "cheap_passwords", "clock", "control_database", "database", "keys_known",
    "made_state", "other_key", "rest", "settings", "state",
]  # fmt: skip
