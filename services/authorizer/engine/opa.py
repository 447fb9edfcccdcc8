"""OPA behind the Engine protocol: batches through its Data API, bundles by its stock Bundle API.

An answer counts only with the provenance of the revision that was asked for. Built-in errors are
errors (`strict-builtin-errors`): a failing deny rule must not turn undefined.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct

from services.authorizer.engine.answer import (
    EngineAnswer,
    EngineFailure,
    FailureCode,
    decide_opa,
    shadow_pairs,
)
from services.authorizer.engine.health import Health
from services.authorizer.engine.http1 import (
    Address,
    ConnectionFailed,
    ConnectionRefused,
    HttpClient,
    Response,
    ResponseInvalid,
)
from services.authorizer.engine.opa_feed import BUNDLE_NAME, OpaFeed
from services.authorizer.engine.protocol import EngineBundle, EngineRefused, EngineState, latest
from services.common.rego.names import tenant_segment
from services.common.rego.verdicts import AnswerInvalid, ObligationUnknown, ShadowVerdict
from services.common.supervisor import Supervisor
from services.common.telemetry.logging import Log

NAME: Final = "opa"
QUERY_LIMIT_S: Final = 0.2
PROBE_EVERY_S: Final = 0.1
PROBE_LIMIT_S: Final = 0.05
PROBE_MISSES: Final = 3
ACTIVATION_LIMIT_S: Final = 5.0
ACTIVATION_POLL_S: Final = 0.02
_OPTIONS: Final = "?provenance=true&strict-builtin-errors=true"
_REVISION: Final = "/v1/data/behavry/revision?provenance=true"

Said = EngineAnswer | EngineFailure


class _Bundle(Struct, frozen=True):
    revision: str = ""


class _Provenance(Struct, frozen=True):
    bundles: dict[str, _Bundle] = {}


class _Entry(Struct, frozen=True, forbid_unknown_fields=True):
    i: Annotated[int, Meta(ge=0)]
    decision: Raw


class _Result(Struct, frozen=True):
    provenance: _Provenance
    result: tuple[_Entry, ...] | None = None


class _Reported(Struct, frozen=True):
    provenance: _Provenance = _Provenance()


_result: Final = msgspec.json.Decoder(_Result)
_reported: Final = msgspec.json.Decoder(_Reported)


class _Failed(Exception):
    """The query gave no usable answer for any of its items."""

    def __init__(self, code: FailureCode) -> None:
        super().__init__(code)
        self.code = code


@asynccontextmanager
async def opa_engine(url: str, feed: OpaFeed, log: Log) -> AsyncIterator[Opa]:
    """`url` is BEHAVRY_OPA_URL; the feed is served by the caller."""
    async with Supervisor(log) as supervisor:
        engine = Opa(HttpClient(Address.parse(url)), feed)
        supervisor.spawn("opa_health", engine.watch)
        try:
            yield engine
        finally:
            await engine.close()


class Opa:
    """See `protocol.Engine`. Opened by `opa_engine`."""

    name = NAME

    def __init__(self, client: HttpClient, feed: OpaFeed) -> None:
        self._client = client
        self._feed = feed
        self._health = Health(PROBE_MISSES)
        self._loop = asyncio.get_running_loop()
        self._shadowed: dict[str, frozenset[str]] = {}  # by revision, the last two
        self._seen = ""  # the revision that OPA last reported
        self._switched = asyncio.Event()

    @property
    def state(self) -> EngineState:
        return self._health.state

    def on_state(self, call: Callable[[EngineState], None]) -> None:
        self._health.on_state(call)

    async def offer(self, bundle: EngineBundle) -> None:
        """OPA fetches, verifies and compiles by itself; this waits until it says so."""
        self._shadowed = latest(self._shadowed, bundle.revision, bundle.shadowed)
        before = self._feed.current
        self._feed.publish(bundle.etag, bundle.archive)
        try:
            async with asyncio.timeout(ACTIVATION_LIMIT_S):
                while self._seen != bundle.revision:
                    await self._look()
        except TimeoutError:
            if before is not None:
                self._feed.publish(*before)
            raise EngineRefused(
                "BUNDLE_COMPILE_FAILED", "OPA did not activate the bundle in time"
            ) from None
        self._health.answered()

    async def evaluate(
        self, tenant: str, revision: str, items: Sequence[bytes], deadline: float
    ) -> list[Said]:
        started = self._loop.time()
        try:
            entries = await self._query(tenant, "batch", revision, items, deadline)
        except _Failed as failed:
            shared = len(items) > 1 and failed.code in _ITEMS_FAULT
            return [self._failed(failed.code, started, shared=shared)] * len(items)
        spent_us = int((self._loop.time() - started) * 1e6) // len(items)
        return [self._said(raw, spent_us) for raw in entries]

    def shadows(self, tenant: str, revision: str) -> bool:
        return tenant in self._shadowed.get(revision, ())

    async def observe(
        self, tenant: str, revision: str, items: Sequence[bytes], deadline: float
    ) -> list[tuple[ShadowVerdict, ...]]:
        try:
            entries = await self._query(tenant, "shadow_batch", revision, items, deadline)
        except _Failed as failed:
            if len(items) == 1 or failed.code not in _ITEMS_FAULT:
                return [()] * len(items)
            each = [self.observe(tenant, revision, [item], deadline) for item in items]
            return [seen[0] for seen in await asyncio.gather(*each)]
        return [shadow_pairs(raw, by_policy=False) for raw in entries]

    async def close(self) -> None:
        self._client.close()

    async def watch(self) -> None:
        """For the supervisor: OPA's own word on its bundles, every 100 ms."""
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            try:
                response = await self._client.get(
                    "/health?bundles", deadline=self._loop.time() + PROBE_LIMIT_S
                )
            except ConnectionRefused:
                self._health.refused()
            except (ConnectionFailed, ResponseInvalid, TimeoutError):
                self._health.missed()
            else:
                self._health.answered() if response.status == 200 else self._health.missed()

    async def _query(
        self, tenant: str, rule: str, revision: str, items: Sequence[bytes], deadline: float
    ) -> list[Raw]:
        """1. ask, once more on a connection error  2. status  3. revision  4. each index once."""
        target = f"/v1/data/behavry/authz/{tenant_segment(tenant)}/{rule}{_OPTIONS}"
        body = b'{"input":{"items":[%b]}}' % b",".join(items)
        until = min(deadline, self._loop.time() + QUERY_LIMIT_S)
        response = await self._post(target, body, until)  # 1
        if response.status != 200:  # 2
            raise _Failed("engine_error")
        try:
            answer = _result.decode(response.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _Failed("engine_invalid") from None
        self._note(answer.provenance)
        if self._seen != revision:  # 3
            await self._let_switch(until)
            raise _Failed("revision_mismatch")
        entries: list[Raw | None] = [None] * len(items)  # 4
        for entry in answer.result or ():
            if entry.i >= len(items) or entries[entry.i] is not None:
                raise _Failed("engine_invalid")
            entries[entry.i] = entry.decision
        found = [entry for entry in entries if entry is not None]
        if len(found) != len(items):
            raise _Failed("engine_invalid")
        return found

    async def _post(self, target: str, body: bytes, until: float) -> Response:
        for attempt in (1, 2):
            try:
                return await self._client.post(target, body, deadline=until)
            except ConnectionRefused:
                self._health.refused()
                raise _Failed("policy_unavailable") from None
            except ConnectionFailed:
                if attempt == 2:
                    break
            except ResponseInvalid:
                raise _Failed("engine_invalid") from None
            except TimeoutError:
                raise _Failed("engine_timeout") from None
        raise _Failed("policy_unavailable")

    async def _let_switch(self, until: float) -> None:
        """OPA is ahead of the authorizer's view while `offer` is under way: by returning a moment
        later, the caller finds the new view and can ask again with it.
        """
        try:
            async with asyncio.timeout_at(min(until, self._loop.time() + 2 * ACTIVATION_POLL_S)):
                await self._switched.wait()
        except TimeoutError:
            return

    async def _look(self) -> None:
        """Asks OPA which revision it has, unless an answer to a call tells before."""
        self._switched.clear()
        try:
            response = await self._client.get(_REVISION, deadline=self._loop.time() + 1)
            self._note(_reported.decode(response.body).provenance)
        except (ConnectionFailed, ResponseInvalid, TimeoutError, msgspec.DecodeError):
            pass
        if not self._switched.is_set():
            try:
                async with asyncio.timeout(ACTIVATION_POLL_S):
                    await self._switched.wait()
            except TimeoutError:
                return

    def _note(self, provenance: _Provenance) -> None:
        revision = provenance.bundles.get(BUNDLE_NAME, _Bundle()).revision
        if revision != self._seen:
            self._seen = revision
            self._switched.set()

    def _said(self, raw: Raw, spent_us: int) -> Said:
        try:
            decision = decide_opa(raw)
        except AnswerInvalid:
            return EngineFailure(code="engine_invalid", engine=NAME, engine_us=spent_us)
        except ObligationUnknown:
            return EngineFailure(code="obligation_unknown", engine=NAME, engine_us=spent_us)
        return EngineAnswer(decision=decision, engine=NAME, engine_us=spent_us)

    def _failed(self, code: FailureCode, started: float, *, shared: bool) -> EngineFailure:
        spent_us = int((self._loop.time() - started) * 1e6)
        return EngineFailure(code=code, engine=NAME, engine_us=spent_us, shared=shared)


#: Failures that one item can bring over its neighbours; asked alone, they may well be answered.
_ITEMS_FAULT: Final = frozenset({"engine_error", "engine_invalid", "engine_timeout"})
