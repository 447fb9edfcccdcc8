"""An engine that a test scripts in one line: `engine.answers = fails("engine_error")`.

Implements the real Protocol; tests/contract/engines/test_fake.py holds it to the same cases.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.authorizer.engine.answer import EngineAnswer, EngineFailure, FailureCode
from services.authorizer.engine.batching import Said
from services.authorizer.engine.protocol import EngineBundle, EngineRefused, EngineState
from services.common.rego.verdicts import DEFAULT_DENY, Decision, Result, ShadowVerdict

NAME = "fake"
Answers = Callable[[Sequence[bytes]], list[Said]]


def decided(result: Result, code: str = "fake") -> Answers:
    """The same decision for every item."""
    decision = Decision(result=result, reason_code=code, reason="as scripted", codes=(code,))
    if (result, code) == ("deny", "default_deny"):
        decision = DEFAULT_DENY
    said = EngineAnswer(decision=decision, engine=NAME, engine_us=1)
    return lambda items: [said] * len(items)


def fails(code: FailureCode, *, shared: bool = False) -> Answers:
    failure = EngineFailure(code=code, engine=NAME, shared=shared)
    return lambda items: [failure] * len(items)


def spoiled_by(poison: bytes, code: FailureCode = "engine_error") -> Answers:
    """A query that holds `poison` fails as a whole; alone it fails by itself."""

    def answers(items: Sequence[bytes]) -> list[Said]:
        if poison in items:
            return fails(code, shared=len(items) > 1)(items)
        return decided("allow")(items)

    return answers


@dataclass(slots=True)
class FakeEngine:
    """UP and allowing, until told otherwise. `hold` keeps answers back while it is cleared."""

    answers: Answers = field(default_factory=lambda: decided("allow"))
    refuses: bool = False
    name: str = NAME
    state: EngineState = EngineState.UP
    queries: list[list[bytes]] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    shadowed: tuple[ShadowVerdict, ...] = ()
    _listeners: list[Callable[[EngineState], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hold.set()

    def become(self, state: EngineState) -> None:
        self.state = state
        for call in self._listeners:
            call(state)

    def on_state(self, call: Callable[[EngineState], None]) -> None:
        self._listeners.append(call)

    async def offer(self, bundle: EngineBundle) -> None:
        if self.refuses:
            raise EngineRefused("BUNDLE_COMPILE_FAILED", "as scripted")
        self.revisions.append(bundle.revision)

    async def evaluate(
        self, tenant: str, revision: str, items: Sequence[bytes], deadline: float
    ) -> list[EngineAnswer | EngineFailure]:
        self.queries.append(list(items))
        self.asked.set()
        try:
            async with asyncio.timeout_at(deadline):
                await self.hold.wait()
        except TimeoutError:
            return fails("engine_timeout")(items)
        if self.revisions and revision != self.revisions[-1]:
            return fails("revision_mismatch")(items)
        return self.answers(items)

    def shadows(self, tenant: str, revision: str) -> bool:
        return bool(self.shadowed)

    async def observe(
        self, tenant: str, revision: str, items: Sequence[bytes], deadline: float
    ) -> list[tuple[ShadowVerdict, ...]]:
        return [self.shadowed] * len(items)

    async def close(self) -> None:
        self.closed = True
