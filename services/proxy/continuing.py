"""What an agent carries while its call waits for a person: sealed, and good for that call alone.

Decides what each value is bound to (mcp.md 9). That it opens proves nothing about the approval: it
names an escalation, and the authorizer is asked about that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import Struct

from services.common.clock import Clock
from services.proxy.calls import Visit
from services.proxy.seals import Purpose, Seals, Unsealed
from services.proxy.sessions import Session, holder

REQUEST_S: Final = 3600
_MS: Final = 1_000_000


class Round(Struct, frozen=True, array_like=True):
    """`requestState`: the escalation was shown for the `number`th time."""

    method: str
    tool: str
    digest: str
    number: int
    escalation: str
    until_ms: int


class Shown(Struct, frozen=True, array_like=True):
    """The id of a request of ours to a legacy agent."""

    escalation: str
    until_ms: int


class Task(Struct, frozen=True, array_like=True):
    """`taskId`. The escalation that it began with; the task may outlive it."""

    id: str
    tool: str
    digest: str
    kind: Literal["approval"]
    escalation: str
    created_ms: int
    until_ms: int


_Carried = TypeVar("_Carried", Round, Shown, Task)


class Carried:
    """Seals and opens them. Opening raises Unsealed: foreign, forged or too old read alike."""

    def __init__(self, seals: Seals, clock: Clock) -> None:
        self._seals = seals
        self._clock = clock

    def now_ms(self) -> int:
        return self._clock.now_ns() // _MS

    def seal_round(self, visit: Visit, content: Round) -> str:
        return self._seal("state", holder(visit), content)

    def open_round(self, visit: Visit, value: str) -> Round:
        return self._open("state", holder(visit), value, Round)

    def seal_shown(self, visit: Visit, session: Session, escalation: str) -> str:
        content = Shown(escalation, self.now_ms() + REQUEST_S * 1000)
        return self._seal("request", (*holder(visit), session.id), content)

    def open_shown(self, visit: Visit, session: Session, value: str) -> Shown:
        return self._open("request", (*holder(visit), session.id), value, Shown)

    def seal_task(self, visit: Visit, content: Task) -> str:
        return self._seal("task", holder(visit), content)

    def open_task(self, visit: Visit, value: str) -> Task:
        return self._open("task", holder(visit), value, Task)

    def _seal(self, purpose: Purpose, owner: Sequence[str], content: Struct) -> str:
        return self._seals.seal(purpose, owner, msgspec.msgpack.encode(content))

    def _open(
        self, purpose: Purpose, owner: Sequence[str], value: str, kind: type[_Carried]
    ) -> _Carried:
        try:
            made = msgspec.msgpack.decode(self._seals.open(purpose, owner, value), type=kind)
        except msgspec.DecodeError:
            raise Unsealed from None
        if self.now_ms() > made.until_ms:
            raise Unsealed
        return made
