"""Rights taken away since the active bundle was built. Only a newer bundle gives any back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A signal of the link. Forgotten once a bundle of `min_serial` or newer is active."""

    signal_id: str
    tenant: str
    agents: frozenset[str]
    sessions: frozenset[str]
    min_serial: int


@dataclass(slots=True)
class Revocations:
    _signals: dict[str, Revocation] = field(default_factory=dict)
    _agents: set[tuple[str, str]] = field(default_factory=set)
    _sessions: set[tuple[str, str]] = field(default_factory=set)

    def add(self, signal: Revocation, *, active_serial: int) -> None:
        """The same signal twice is one; one that the active bundle already knows is none."""
        if signal.min_serial > active_serial:
            self._signals[signal.signal_id] = signal
            self._index()

    def settle(self, active_serial: int) -> None:
        """Forgets what the newly active bundle says itself."""
        self._signals = {
            signal_id: signal
            for signal_id, signal in self._signals.items()
            if signal.min_serial > active_serial
        }
        self._index()

    def agent(self, tenant: str, agent: str) -> bool:
        return (tenant, agent) in self._agents

    def session(self, tenant: str, session: str) -> bool:
        return (tenant, session) in self._sessions

    def sessions_of(self, tenant: str) -> Collection[str]:
        return [session for owner, session in self._sessions if owner == tenant]

    def _index(self) -> None:
        signals = self._signals.values()
        self._agents = {(one.tenant, agent) for one in signals for agent in one.agents}
        self._sessions = {(one.tenant, session) for one in signals for session in one.sessions}
