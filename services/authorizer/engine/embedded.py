"""The embedded engine: a Rego child process and a warm spare behind the Engine protocol.

A child that holds an item longer than 200 ms is killed for it: that item is a Deny, the spare takes
the others. A new revision is loaded by the spare, which then becomes the one that answers.
For a zero-install start and for tests, not for production (core.md 5).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from services.authorizer.engine.answer import (
    EngineAnswer,
    EngineFailure,
    FailureCode,
    decide_grouped,
    shadow_pairs,
)
from services.authorizer.engine.health import Health
from services.authorizer.engine.protocol import (
    EngineBundle,
    EngineCapacity,
    EngineRefused,
    EngineState,
    latest,
)
from services.common.ids import NIL_TENANT
from services.common.rego import frames
from services.common.rego.names import tenant_segment
from services.common.rego.process import CHILD, End, Outcome, RegoProcess
from services.common.rego.verdicts import AnswerInvalid, ObligationUnknown, ShadowVerdict
from services.common.supervisor import Supervisor
from services.common.telemetry.logging import Log

NAME: Final = "embedded"
MAX_TENANTS: Final = 8
MAX_POLICIES: Final = 200
CANARY_EVERY_S: Final = 0.25
CANARY_MISSES: Final = 2
#: How long a tenant's policies in shadow are left alone after one of them held a child too long.
SHADOW_MUTED_S: Final = 60.0
_PACKAGE: Final = re.compile(r"^package\s+([\w.]+)", re.MULTILINE)
_TENANT_PACKAGE: Final = re.compile(r"behavry\.(?:tenant|authz)\.(t[0-9a-f]{32})\b")

Said = EngineAnswer | EngineFailure


@dataclass(frozen=True, slots=True)
class _Loadable:
    """A bundle in the form that a child takes."""

    revision: str
    tenants: tuple[frames.ChildTenant, ...]
    data: bytes | None


@asynccontextmanager
async def embedded_engine(log: Log, *, command: Sequence[str] = CHILD) -> AsyncIterator[Embedded]:
    """An engine without policies yet: its children start with the first bundle."""
    async with Supervisor(log) as supervisor:
        engine = Embedded(command)
        supervisor.spawn("embedded_engine_spare", engine.keep_spare)
        supervisor.spawn("embedded_engine_canary", engine.watch)
        try:
            yield engine
        finally:
            await engine.close()


class Embedded:
    """See `protocol.Engine`. Opened by `embedded_engine`."""

    name = NAME

    def __init__(self, command: Sequence[str] = CHILD) -> None:
        self._command = command
        self._health = Health(CANARY_MISSES)
        self._loop = asyncio.get_running_loop()
        self._shadowed: dict[str, frozenset[str]] = {}  # by revision, the last two
        self._revisions: list[_Loadable] = []  # newest last; one older stays for calls under way
        self._active: RegoProcess | None = None
        self._spare: RegoProcess | None = None
        self._ready = asyncio.Event()  # there is an active child
        self._short = asyncio.Event()  # a child is missing
        self._changing = asyncio.Lock()  # who starts children or loads revisions
        self._shadow_muted: dict[tuple[str, str], float] = {}
        self._last_success = 0.0
        self._closed = False

    @property
    def state(self) -> EngineState:
        return self._health.state

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in (self._active, self._spare) if child and not child.gone]

    def on_state(self, call: Callable[[EngineState], None]) -> None:
        self._health.on_state(call)

    async def offer(self, bundle: EngineBundle) -> None:
        """1. capacity  2. load into the spare  3. swap  4. the other child follows."""
        _check_capacity(bundle)  # 1
        loadable = _loadable(bundle)
        async with self._changing:
            candidate = self._spare if self._spare and not self._spare.gone else None
            if candidate is None:
                candidate = await self._start(self._revisions)
            outcome = await candidate.load(loadable.revision, loadable.tenants, loadable.data)  # 2
            if outcome.end is not End.DONE:
                self._spare = None if candidate.gone else candidate
                self._short.set()
                raise EngineRefused("BUNDLE_COMPILE_FAILED", "the engine cannot load this bundle")
            self._revisions = [*self._revisions[-1:], loadable]
            self._shadowed = latest(self._shadowed, bundle.revision, bundle.shadowed)
            behind, self._active, self._spare = self._active, candidate, None  # 3
            self._ready.set()
            self._health.answered()
            if behind is not None and not behind.gone:  # 4
                followed = await behind.load(loadable.revision, loadable.tenants, loadable.data)
                self._spare = behind if followed.end is End.DONE else None
            self._short.set()

    async def evaluate(
        self, tenant: str, revision: str, items: Sequence[bytes], deadline: float
    ) -> list[Said]:
        started = self._loop.time()
        answers: list[Said | None] = [None] * len(items)
        waiting = list(range(len(items)))
        while waiting:
            child = await self._child(deadline)
            if child is None:
                code: FailureCode = "engine_timeout" if self._ready.is_set() else _GONE
                for at in waiting:
                    answers[at] = self._failed(code, started)
                break
            outcome = await child.evaluate(revision, tenant, [items[at] for at in waiting])
            for at, item in zip(waiting, outcome.items, strict=False):
                answers[at] = self._said(item, started, len(items))
            self._settle(waiting, outcome, answers, started)
            waiting = [at for at in waiting if answers[at] is None]
        return [answer or self._failed("engine_error", started) for answer in answers]

    def shadows(self, tenant: str, revision: str) -> bool:
        return tenant in self._shadowed.get(revision, ())

    async def observe(
        self, tenant: str, revision: str, items: Sequence[bytes], deadline: float
    ) -> list[tuple[ShadowVerdict, ...]]:
        muted_until = self._shadow_muted.get((tenant, revision), 0.0)
        child = await self._child(deadline)
        if child is None or self._loop.time() < muted_until:
            return [()] * len(items)
        outcome = await child.evaluate(revision, tenant, items, shadow=True)
        if outcome.culprit is not None:  # it cost a child: no more of that for a while
            self._shadow_muted = {(tenant, revision): self._loop.time() + SHADOW_MUTED_S}
        seen = [shadow_pairs(item.said, by_policy=True) for item in outcome.items]
        return seen + [()] * (len(items) - len(seen))

    async def close(self) -> None:
        self._closed = True
        async with self._changing:  # a child that is being started is waited for, then closed
            for child in (self._active, self._spare):
                if child is not None:
                    await child.close()

    async def keep_spare(self) -> None:
        """For the supervisor: starts what is missing, for as long as the engine is open."""
        while True:
            await self._short.wait()
            async with self._changing:
                if self._closed:
                    return
                self._short.clear()
                try:
                    await self._fill_up()
                except BaseException:
                    self._short.set()  # the supervisor calls again
                    raise

    async def _fill_up(self) -> None:
        if not self._revisions:
            return
        if self._active is None or self._active.gone:
            self._promote()
            self._short.clear()
        if self._active is None:
            self._active = await self._start(self._revisions)
            self._ready.set()
        if self._spare is None or self._spare.gone:
            self._spare = await self._start(self._revisions)

    async def watch(self) -> None:
        """For the supervisor: the canary, silent while real evaluations succeed."""
        while True:
            await asyncio.sleep(CANARY_EVERY_S)
            if not self._revisions or self._loop.time() - self._last_success < CANARY_EVERY_S:
                continue
            if await self._canary():
                self._health.answered()
            else:
                self._health.missed()

    async def _canary(self) -> bool:
        """A child that was killed under the canary, for somebody's input, is asked for again."""
        until = self._loop.time() + CANARY_EVERY_S
        while self._loop.time() < until:
            child = await self._child(until)
            if child is None:
                return False
            outcome = await child.ping()
            if outcome.end is not End.UNSTARTED:
                return outcome.end is End.DONE
        return False

    async def _child(self, deadline: float) -> RegoProcess | None:
        """The child that answers, waited for until the deadline."""
        if self._loop.time() >= deadline:
            return None
        if self._active is None or self._active.gone:
            try:
                async with asyncio.timeout_at(deadline):
                    while self._active is None or self._active.gone:
                        self._ready.clear()
                        self._promote()
                        await self._ready.wait()
            except TimeoutError:
                return None
        return self._active

    def _promote(self) -> None:
        """The spare takes over at once; a new one is made behind it."""
        self._active, self._spare = self._spare, None
        if self._active is not None and self._active.gone:
            self._active = None
        if self._active is not None:
            self._ready.set()
        self._short.set()

    async def _start(self, revisions: Sequence[_Loadable]) -> RegoProcess:
        child = await RegoProcess.start(self._command)
        child.on_end = self._ended
        for known in revisions:
            outcome = await child.load(known.revision, known.tenants, known.data)
            if outcome.end is not End.DONE:
                await child.close()
                raise EngineRefused("BUNDLE_COMPILE_FAILED", "a child cannot load the bundle")
        return child

    def _ended(self) -> None:
        if self._closed:
            return
        if self._active is not None and self._active.gone:
            self._ready.clear()
        self._short.set()

    def _said(self, item: frames.Item, started: float, of: int) -> Said:
        if item.error:
            return self._failed("engine_error", started)
        self._last_success = now = self._loop.time()
        try:
            decision = decide_grouped(item.said)
        except AnswerInvalid:
            return self._failed("engine_invalid", started)
        except ObligationUnknown:
            return self._failed("obligation_unknown", started)
        return EngineAnswer(
            decision=decision, engine=NAME, engine_us=int((now - started) * 1e6) // of
        )

    def _settle(
        self, asked: list[int], outcome: Outcome, answers: list[Said | None], started: float
    ) -> None:
        """What becomes of items without an answer. Where the child died over one of them, that
        one is denied; the others, which it had not come to, go to another child.
        """
        left = asked[len(outcome.items) :]
        if outcome.end in {End.REFUSED, End.DONE}:
            code: FailureCode = "revision_mismatch" if outcome.refused else "engine_invalid"
            for at in left:
                answers[at] = self._failed(code, started)
        if outcome.culprit is not None:
            code = "engine_timeout" if outcome.end is End.OVERRUN else "engine_error"
            answers[asked[outcome.culprit]] = self._failed(code, started)

    def _failed(self, code: FailureCode, started: float) -> EngineFailure:
        spent_us = int((self._loop.time() - started) * 1e6)
        return EngineFailure(code=code, engine=NAME, engine_us=spent_us)


_GONE: Final[FailureCode] = "policy_unavailable"


def _check_capacity(bundle: EngineBundle) -> None:
    if len(bundle.tenants.keys() - {NIL_TENANT}) > MAX_TENANTS:
        raise EngineCapacity(f"the embedded engine serves at most {MAX_TENANTS} tenants")
    for tenant in bundle.tenants.values():
        own = [p for p in tenant.policies if not p.package.startswith("behavry.base.")]
        if len(own) > MAX_POLICIES:
            raise EngineCapacity(f"the embedded engine takes {MAX_POLICIES} policies per tenant")


def _loadable(bundle: EngineBundle) -> _Loadable:
    """Each tenant gets an interpreter of its own: the shared modules and its policies."""
    tenants = tuple(
        frames.ChildTenant(
            tenant=tenant,
            modules=dict(_modules_of(bundle, tenant_segment(tenant))),
            policies=tuple(
                frames.ChildPolicy(policy.key, policy.entry, policy.state == "shadow")
                for policy in part.policies
            ),
        )
        for tenant, part in bundle.tenants.items()
    )
    reads_data = any("behavry.state" in source for source in bundle.modules.values())
    return _Loadable(bundle.revision, tenants, bundle.data_json if reads_data else None)


def _modules_of(bundle: EngineBundle, segment: str) -> Iterator[tuple[str, str]]:
    """Without the generated package: the child evaluates each policy by its own path."""
    for path, source in bundle.modules.items():
        package = _PACKAGE.search(source)
        owned = _TENANT_PACKAGE.match(package[1]) if package else None
        if owned and (owned[1] != segment or owned[0].startswith("behavry.authz.")):
            continue
        yield path, source
