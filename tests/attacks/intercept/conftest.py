"""The proxy in front of a told tool server, the authorizer under a told control, and control on a
real PostgreSQL: the fixtures of their own integration tests, as an adversary finds them.
"""

from tests.integration.authorizer.conftest import control, environment, start, state_dir
from tests.integration.authorizer.test_escalations import desk
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
from tests.integration.proxy.conftest import hold, one_tool_server, proxy, tools

__all__ = [
    "cheap_passwords", "clock", "control", "control_database", "database", "desk", "environment",
    "hold", "keys_known", "made_state",
    "one_tool_server", "other_key", "proxy",
    "rest", "settings", "start", "state", "state_dir", "tools",
]  # fmt: skip
