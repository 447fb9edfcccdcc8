"""The proxy in front of a told tool server, and control on a real PostgreSQL, as an adversary finds
them: the fixtures of their own integration tests.
"""

from tests.integration.control.conftest import clock, made_state, other_key, rest, settings, state
from tests.integration.proxy.conftest import hold, one_tool_server, proxy, tools

__all__ = [
    "clock", "hold", "made_state", "one_tool_server", "other_key", "proxy", "rest", "settings",
    "state", "tools",
]  # fmt: skip
