"""How much a tenant's agents may do, and how long people may take (core.md 6 and 9): what the
document at `settings/limits` may say. Keys and values are those of the bundle.
"""

from __future__ import annotations

from typing import Any, Final

MAX_PER_MINUTE: Final = 1_000_000
MAX_LIMITED_TOOLS: Final = 500
MINUTE_S: Final = 60
DAY_S: Final = 86_400

#: What a tenant has that set nothing.
SHIPPED: Final[dict[str, Any]] = {
    "rates": {
        "agent_per_minute": 300,
        "agent_burst": 100,
        "tenant_per_minute": 6000,
        "tools": {},
    },
    "escalations": {
        "decide_seconds": {"low": DAY_S, "medium": 14_400, "high": 1800, "critical": 300},
        "execute_seconds": 900,
    },
}
