"""Control on a real PostgreSQL, as whoever wants to be somebody else finds it."""

from tests.integration.control.conftest import clock, made_state, other_key, rest, settings, state

__all__ = ["clock", "made_state", "other_key", "rest", "settings", "state"]
