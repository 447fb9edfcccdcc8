"""Which waiting calls are woken by what. Decides nothing about them: a woken call asks again.

News may come before the call that it concerns began to wait. So each piece has a number, and who
waits says which was the last one when it asked: what came since wakes it at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from services.proxy.calls import Caller

#: Escalations whose last change is remembered; about older ones everybody asks again.
REMEMBERED: Final = 10_000


Revoked = Callable[[str, frozenset[str], frozenset[str]], None]


class Woken(Enum):
    #: Something changed: ask again.
    CHANGED = "changed"
    #: The time is over.
    OVER = "over"
    #: The agent does not wait any more.
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiter:
    caller: Caller
    escalation_id: str
    #: The request, as its session names it; None where nobody can name it.
    request: tuple[str, int | str] | None
    woken: asyncio.Future[Woken]

    def wake(self, why: Woken) -> None:
        if not self.woken.done():
            self.woken.set_result(why)


class Holds:
    """One per worker."""

    def __init__(self) -> None:
        self._number = 0
        self._changes: OrderedDict[tuple[str, str], int] = OrderedDict()
        #: The last piece of news that may concern anybody.
        self._general = 0
        self._waiters: set[_Waiter] = set()
        self._closed = False
        #: Also told of what is revoked.
        self.when_revoked: Revoked | None = None
        self.when_reconnected: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._waiters)

    def mark(self) -> int:
        """The number of the last news; taken before asking."""
        return self._number

    def changed(self, caller: Caller, escalation_id: str, since: int) -> bool:
        key = (caller.tenant, escalation_id)
        return self._general > since or self._changes.get(key, 0) > since

    def close(self) -> None:
        """The process ends: whoever waits is told to call again."""
        self._closed = True
        for waiter in self._waiters:
            waiter.wake(Woken.OVER)

    async def wait(
        self,
        caller: Caller,
        escalation_id: str,
        *,
        since: int,
        seconds: float,
        request: tuple[str, int | str] | None,
        gone: asyncio.Event,
    ) -> Woken:
        if self._closed:
            return Woken.OVER
        if self.changed(caller, escalation_id, since):
            return Woken.CHANGED
        loop = asyncio.get_running_loop()
        waiter = _Waiter(
            caller=caller,
            escalation_id=escalation_id,
            request=request,
            woken=loop.create_future(),
        )
        self._waiters.add(waiter)
        timer = loop.call_later(seconds, waiter.wake, Woken.OVER)
        try:
            async with asyncio.TaskGroup() as group:
                leaving = group.create_task(_leave(waiter, gone))
                woken = await waiter.woken
                leaving.cancel()
            return Woken.GONE if gone.is_set() else woken  # nothing is done for nobody
        finally:
            timer.cancel()
            self._waiters.discard(waiter)

    def ticket_changed(self, tenant_id: str, escalation_id: str) -> None:
        self._number += 1
        key = (tenant_id, escalation_id)
        self._changes[key] = self._number
        self._changes.move_to_end(key)
        if len(self._changes) > REMEMBERED:
            _, forgotten = self._changes.popitem(last=False)
            self._general = max(self._general, forgotten)
        for waiter in self._waiters:
            if (waiter.caller.tenant, waiter.escalation_id) == key:
                waiter.wake(Woken.CHANGED)

    def revoked(self, tenant_id: str, agents: frozenset[str], sessions: frozenset[str]) -> None:
        """Nothing named means everybody of the tenant; no tenant means everybody."""
        self._general = self._number = self._number + 1
        for waiter in self._waiters:
            if concerns(waiter.caller, tenant_id, agents, sessions):
                waiter.wake(Woken.CHANGED)
        if self.when_revoked is not None:
            self.when_revoked(tenant_id, agents, sessions)

    def reconnected(self) -> None:
        """Whatever changed while there was no stream was not heard."""
        self._general = self._number = self._number + 1
        for waiter in self._waiters:
            waiter.wake(Woken.CHANGED)
        if self.when_reconnected is not None:
            self.when_reconnected()

    def cancelled(self, request: tuple[str, int | str]) -> bool:
        """The agent gave its own request up. Whether that waits here."""
        named = [waiter for waiter in self._waiters if waiter.request == request]
        for waiter in named:
            waiter.wake(Woken.GONE)
        return bool(named)


def concerns(
    caller: Caller, tenant_id: str, agents: frozenset[str], sessions: frozenset[str]
) -> bool:
    """Whether what was revoked is this caller's."""
    if tenant_id and caller.tenant != tenant_id:
        return False
    return not (agents or sessions) or caller.agent in agents or caller.session in sessions


async def _leave(waiter: _Waiter, gone: asyncio.Event) -> None:
    await gone.wait()
    waiter.wake(Woken.GONE)
