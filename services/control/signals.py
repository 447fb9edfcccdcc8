"""What the rest of control says after a committed change: "desired state changed" and "these rights
end now". The publisher and the links listen; nobody else has to know that they exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.common.clock import Clock
from services.common.ids import AgentId, SessionId, TenantId, uuid7


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A kill switch that was thrown: an agent's id, a class's name or a server's slug; a tenant's
    has no subject.
    """

    scope: str
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationSignal:
    """`min_serial`: the first bundle that is sure to say the same."""

    id: str
    tenant: TenantId
    agents: tuple[AgentId, ...]
    sessions: tuple[SessionId, ...]
    stops: tuple[Stop, ...] = ()
    min_serial: int


@dataclass(slots=True, kw_only=True)
class Signals:
    clock: Clock
    #: Serial of the newest stored bundle, and whether one is being read together right now.
    serial: int = 0
    building: bool = False
    #: How often desired state changed since the start.
    changes: int = 0
    #: How often an escalation was opened, decided or reported on since the start.
    escalations: int = 0
    _revocations: dict[str, RevocationSignal] = field(default_factory=dict)
    _touched: asyncio.Event = field(default_factory=asyncio.Event)
    _listeners: set[asyncio.Event] = field(default_factory=set)

    def touch(self) -> None:
        """Desired state changed and is committed: a new bundle is due."""
        self.changes += 1
        self._touched.set()

    async def touched(self) -> None:
        """Waits for the next change; changes that came before count once."""
        await self._touched.wait()
        self._touched.clear()

    def revoke(
        self,
        tenant: TenantId,
        *,
        agents: Iterable[AgentId] = (),
        sessions: Iterable[SessionId] = (),
        stops: Iterable[Stop] = (),
    ) -> None:
        """The rights of these end now; the change is committed. Also touches."""
        ended_agents, ended_sessions, thrown = tuple(agents), tuple(sessions), tuple(stops)
        if not (ended_agents or ended_sessions or thrown):
            return
        # A bundle that is being read now may have been read before the change.
        min_serial = self.serial + (2 if self.building else 1)
        signal = RevocationSignal(
            id=uuid7(self.clock.now_ns()),
            tenant=tenant,
            agents=ended_agents,
            sessions=ended_sessions,
            stops=thrown,
            min_serial=min_serial,
        )
        self._revocations[signal.id] = signal
        self.touch()
        self._tell()

    def escalation(self) -> None:
        """An escalation changed and that is committed: links look for decisions to send, and who
        tells people of escalations looks at what there is (store/escalations.py).
        """
        self.escalations += 1
        self._tell()

    def published(self, serial: int) -> None:
        """A bundle is stored: planes may fetch it, and it says what older signals said."""
        if serial == self.serial:
            return
        self.serial = serial
        self._revocations = {
            key: signal for key, signal in self._revocations.items() if signal.min_serial > serial
        }
        self._tell()

    def pending(self) -> list[RevocationSignal]:
        """Signals that no stored bundle is sure to hold yet, oldest first."""
        return list(self._revocations.values())

    def listen(self) -> asyncio.Event:
        """An event that is set at every new signal or bundle; give it back with `forget`."""
        event = asyncio.Event()
        self._listeners.add(event)
        return event

    def forget(self, event: asyncio.Event) -> None:
        self._listeners.discard(event)

    def _tell(self) -> None:
        for event in self._listeners:
            event.set()
