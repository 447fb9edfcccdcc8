"""What an agent carries while its call waits for a person: sealed, and good for that call alone.

Decides what each value is bound to (mcp.md 9). That it opens proves nothing about the approval: it
names an escalation, and the authorizer is asked about that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import Struct
from msgspec.msgpack import Decoder

from services.common.clock import Clock
from services.proxy.calls import Visit
from services.proxy.seals import Purpose, Seals, Unsealed
from services.proxy.sessions import Session, holder

REQUEST_S: Final = 3600
RELAYED_S: Final = 600
_MS: Final = 1_000_000


class Round(Struct, frozen=True, array_like=True, tag="approval"):
    """`requestState` of ours: the escalation was shown for the `number`th time. Where the call that
    waits answers its tool server already, `answers` (JSON) and `state` are that answer, and `turn`
    its number: the agent repeats the last thing that it was asked, and not what came before.
    """

    method: str
    tool: str
    digest: str
    number: int
    escalation: str
    until_ms: int
    answers: bytes = b""
    state: str | None = None
    turn: int = 0


class Relayed(Struct, frozen=True, array_like=True, tag="upstream"):
    """`requestState` of a tool server, if it gave one, in ours: for the `turn`th answer."""

    method: str
    tool: str
    #: Of the question without any answers.
    digest: str
    turn: int
    state: str | None
    until_ms: int


class Shown(Struct, frozen=True, array_like=True, tag="approval"):
    """The id of a request of ours to a legacy agent."""

    escalation: str
    until_ms: int


class Posed(Struct, frozen=True, array_like=True, tag="upstream"):
    """The id of a tool server's request to a legacy agent. The server's own id may be longer than
    an id of ours could hold: the process that relayed the request knows it; `at` names that one.
    """

    key: str
    until_ms: int
    at: str = ""


class Task(Struct, frozen=True, array_like=True, tag="approval"):
    """`taskId` of ours. The escalation that it began with; the task may outlive it."""

    id: str
    tool: str
    digest: str
    kind: Literal["approval"]
    escalation: str
    created_ms: int
    until_ms: int
    #: The process that has its arguments.
    at: str = ""


class TheirTask(Struct, frozen=True, array_like=True, tag="upstream"):
    """`taskId` of a tool server's task. `id` is the decision that let its call run."""

    id: str
    tool: str
    digest: str
    theirs: str
    until_ms: int


_Carried = TypeVar("_Carried", Round | Relayed, Shown | Posed, Task | TheirTask)
_STATE: Final = Decoder[Round | Relayed](Round | Relayed)
_REQUEST: Final = Decoder[Shown | Posed](Shown | Posed)
_TASK: Final = Decoder[Task | TheirTask](Task | TheirTask)


class Carried:
    """Seals and opens them. Opening raises Unsealed: foreign, forged or too old read alike."""

    def __init__(self, seals: Seals, clock: Clock) -> None:
        self._seals = seals
        self._clock = clock

    def now_ms(self) -> int:
        return self._clock.now_ns() // _MS

    def seal_state(self, visit: Visit, content: Round | Relayed) -> str:
        return self._seal("state", holder(visit), content)

    def open_state(self, visit: Visit, value: str) -> Round | Relayed:
        opened: Round | Relayed = self._open("state", holder(visit), value, _STATE)
        return opened

    def seal_shown(self, visit: Visit, session: Session, escalation: str) -> str:
        content = Shown(escalation, self.now_ms() + REQUEST_S * 1000)
        return self._seal("request", _in(visit, session), content)

    def seal_posed(self, visit: Visit, session: Session, key: str, at: str) -> str:
        content = Posed(key, self.now_ms() + REQUEST_S * 1000, at)
        return self._seal("request", _in(visit, session), content)

    def open_request(self, visit: Visit, session: Session, value: str) -> Shown | Posed:
        opened: Shown | Posed = self._open("request", _in(visit, session), value, _REQUEST)
        return opened

    def seal_task(self, visit: Visit, content: Task | TheirTask) -> str:
        return self._seal("task", holder(visit), content)

    def open_task(self, visit: Visit, value: str) -> Task | TheirTask:
        opened: Task | TheirTask = self._open("task", holder(visit), value, _TASK)
        return opened

    def _seal(self, purpose: Purpose, owner: Sequence[str], content: Struct) -> str:
        return self._seals.seal(purpose, owner, msgspec.msgpack.encode(content))

    def _open(
        self, purpose: Purpose, owner: Sequence[str], value: str, decoder: Decoder[_Carried]
    ) -> _Carried:
        try:
            made = decoder.decode(self._seals.open(purpose, owner, value))
        except msgspec.DecodeError:
            raise Unsealed from None
        if self.now_ms() > made.until_ms:
            raise Unsealed
        return made


def _in(visit: Visit, session: Session) -> tuple[str, ...]:
    return (*holder(visit), session.id)
