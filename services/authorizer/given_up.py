"""How often each agent's side has lately given up what people were asked for: whoever does that as
fast as it may call would ring for people all the time, and never have more than one call open.

Of this process alone, and forgotten with it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from services.authorizer.tickets.ticket import PENDING_PER_AGENT
from services.common.ids import AgentId, TenantId

LATELY_MS: Final = 60_000

Agent = tuple[TenantId, AgentId]


class GivenUp:
    def __init__(self) -> None:
        self._at_ms: dict[Agent, deque[int]] = {}

    def note(self, agent: Agent, now_ms: int) -> None:
        self._at_ms.setdefault(agent, deque(maxlen=PENDING_PER_AGENT)).append(now_ms)

    def too_often(self, agent: Agent, now_ms: int) -> bool:
        """As often as it may have open at once."""
        times = self._at_ms.get(agent)
        if times is None or len(times) < PENDING_PER_AGENT:
            return False
        if now_ms - times[0] <= LATELY_MS:
            return True
        if now_ms - times[-1] > LATELY_MS:
            del self._at_ms[agent]
        return False
