"""Natural batching towards the engine: what waits for one tenant and revision goes as one query.

Each item is still judged alone: where a query fails as a whole, its items are asked again one by
one, side by side, each in its own time left. Who spoiled a query is asked alone for a minute.
A lone caller pays nothing: the first query leaves in the same turn of the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from services.authorizer.engine.answer import (
    EngineAnswer,
    EngineFailure,
    FailureCode,
)
from services.authorizer.engine.protocol import Engine
from services.common.rego.verdicts import ShadowVerdict
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log

MAX_ITEMS: Final = 32
MAX_BYTES: Final = 1 << 20
ALONE_FOR_S: Final = 60.0
MAX_SPOILERS: Final = 10_000
#: How long a decision waits for what policies in shadow would have said.
SHADOW_LIMIT_S: Final = 0.1

Said = EngineAnswer | EngineFailure

#: Failures that an item's own evaluation causes.
_SPOILS: Final = frozenset({"engine_error", "engine_invalid", "engine_timeout"})


@dataclass(slots=True)
class _Waiting:
    item: bytes
    source: Hashable
    deadline: float
    answer: asyncio.Future[Said]


@dataclass(slots=True)
class _Lane:
    """What waits for one tenant and revision. `busy`: its query is under way."""

    tenant: str
    revision: str
    waiting: deque[_Waiting] = field(default_factory=deque)
    busy: bool = False
    scheduled: bool = False


@asynccontextmanager
async def batcher(engine: Engine, *, counters: Counters, log: Log) -> AsyncIterator[Batcher]:
    """Closing it ends the queries under way; their items are denied."""
    async with Supervisor(log) as supervisor:
        yield Batcher(engine, supervisor, counters)


class Batcher:
    """Opened by `batcher`."""

    def __init__(self, engine: Engine, supervisor: Supervisor, counters: Counters) -> None:
        self._engine = engine
        self._supervisor = supervisor
        self._queries = counters.counter("authorizer.engine.queries")
        self._items = counters.counter("authorizer.engine.items")
        self._items_in_eights = counters.counter("authorizer.engine.items_in_batches_of_8")
        self._input_bytes = counters.counter("authorizer.engine.input_bytes")
        self._failures = counters.counter("authorizer.engine.failures")
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._spoilers: dict[Hashable, float] = {}  # source -> loop time until when alone

    async def ask(
        self, tenant: str, revision: str, item: bytes, source: Hashable, deadline: float
    ) -> Said:
        """`source` tells whose item it is: (agent, tool). `deadline` is the loop's time. Never
        raises for what the engine does.
        """
        return await self.submit(tenant, revision, item, source, deadline)

    def submit(
        self, tenant: str, revision: str, item: bytes, source: Hashable, deadline: float
    ) -> asyncio.Future[Said]:
        waiting = _Waiting(item, source, deadline, self._loop.create_future())
        if self._spoils(tenant, source):
            self._run(tenant, revision, [waiting])
            return waiting.answer
        lane = self._lanes.get((tenant, revision))
        if lane is None:
            lane = self._lanes[tenant, revision] = _Lane(tenant, revision)
        lane.waiting.append(waiting)
        if not lane.busy and not lane.scheduled:
            lane.scheduled = True
            self._loop.call_soon(self._start, lane)  # the rest of this turn's asks come along
        return waiting.answer

    def _start(self, lane: _Lane) -> None:
        """The lane's next query, if anything waits."""
        lane.scheduled = False
        batch = self._take(lane)
        if batch:
            lane.busy = True
            self._run(lane.tenant, lane.revision, batch, lane)
        elif not lane.busy:
            self._lanes.pop((lane.tenant, lane.revision), None)

    def _take(self, lane: _Lane) -> list[_Waiting]:
        """Up to 32 items and 1 MiB; what has expired is denied alone, and takes no room."""
        batch: list[_Waiting] = []
        size = 0
        now = self._loop.time()
        while lane.waiting and len(batch) < MAX_ITEMS:
            first = lane.waiting[0]
            if first.answer.done() or first.deadline <= now:
                self._settle(lane.waiting.popleft(), self._failure("engine_timeout"))
                continue
            if batch and size + len(first.item) > MAX_BYTES:
                break
            size += len(first.item)
            batch.append(lane.waiting.popleft())
        return batch

    def _run(
        self, tenant: str, revision: str, batch: list[_Waiting], lane: _Lane | None = None
    ) -> None:
        async def query() -> None:
            try:
                await self._query(tenant, revision, batch, lane)
            finally:
                for waiting in batch:
                    self._settle(waiting, self._failure("engine_error"))

        self._supervisor.once("engine_query", query)

    async def _query(
        self, tenant: str, revision: str, batch: list[_Waiting], lane: _Lane | None
    ) -> None:
        """1. ask  2. the lane goes on  3. answer, or ask again alone what may be innocent."""
        try:
            answers = await self._ask(tenant, revision, batch)  # 1
        finally:
            if lane is not None:  # 2
                lane.busy = False
                self._start(lane)
        for waiting, said in zip(batch, answers, strict=True):  # 3
            if isinstance(said, EngineFailure) and said.shared and len(batch) > 1:
                self._again(tenant, revision, waiting)
            else:
                self._note(tenant, waiting, said)
                self._settle(waiting, said)

    def _again(self, tenant: str, revision: str, waiting: _Waiting) -> None:
        """Side by side: each in a query of its own, in its own time left."""
        alone = _Waiting(waiting.item, waiting.source, waiting.deadline, self._loop.create_future())
        outer = waiting.answer
        waiting.answer = alone.answer  # so that the batch's end does not settle it
        alone.answer = outer
        self._run(tenant, revision, [alone])

    async def _ask(self, tenant: str, revision: str, batch: list[_Waiting]) -> Sequence[Said]:
        deadline = max(waiting.deadline for waiting in batch)
        if deadline <= self._loop.time():
            return [self._failure("engine_timeout")] * len(batch)
        items = [waiting.item for waiting in batch]
        self._count(items)
        if not self._engine.shadows(tenant, revision):
            answers = await self._engine.evaluate(tenant, revision, items, deadline)
        else:
            answers, seen = await asyncio.gather(
                self._engine.evaluate(tenant, revision, items, deadline),
                self._observe(tenant, revision, items, deadline),
            )
            answers = [_with_shadow(said, also) for said, also in zip(answers, seen, strict=True)]
        if len(answers) != len(batch):
            return [self._failure("engine_invalid")] * len(batch)
        return answers

    async def _observe(
        self, tenant: str, revision: str, items: list[bytes], deadline: float
    ) -> list[tuple[ShadowVerdict, ...]]:
        """Beside the decision, and never longer than a decision may take."""
        until = min(deadline, self._loop.time() + SHADOW_LIMIT_S)
        try:
            async with asyncio.timeout_at(until):
                return await self._engine.observe(tenant, revision, items, until)
        except TimeoutError:
            return [()] * len(items)

    def _count(self, items: list[bytes]) -> None:
        self._queries.value += 1
        self._items.value += len(items)
        if len(items) >= 8:
            self._items_in_eights.value += len(items)
        self._input_bytes.value += sum(map(len, items))

    def _settle(self, waiting: _Waiting, said: Said) -> None:
        """An answer that comes too late is none."""
        if waiting.answer.done():
            return
        if isinstance(said, EngineFailure):
            self._failures.value += 1
        if isinstance(said, EngineAnswer) and waiting.deadline <= self._loop.time():
            said = EngineFailure(
                code="engine_timeout", engine=said.engine, engine_us=said.engine_us
            )
        waiting.answer.set_result(said)

    def _failure(self, code: FailureCode) -> EngineFailure:
        return EngineFailure(code=code, engine=self._engine.name)

    def _spoils(self, tenant: str, source: Hashable) -> bool:
        if not self._spoilers:
            return False
        until = self._spoilers.get((tenant, source))
        if until is None:
            return False
        if until <= self._loop.time():
            del self._spoilers[tenant, source]
            return False
        return True

    def _note(self, tenant: str, waiting: _Waiting, said: Said) -> None:
        if not isinstance(said, EngineFailure) or said.code not in _SPOILS:
            return
        now = self._loop.time()
        if len(self._spoilers) >= MAX_SPOILERS:
            self._spoilers = {key: until for key, until in self._spoilers.items() if until > now}
        if len(self._spoilers) < MAX_SPOILERS:
            self._spoilers[tenant, waiting.source] = now + ALONE_FOR_S


def _with_shadow(said: Said, seen: tuple[ShadowVerdict, ...]) -> Said:
    if isinstance(said, EngineFailure) or not seen:
        return said
    return replace(said, decision=replace(said.decision, shadow=seen))
