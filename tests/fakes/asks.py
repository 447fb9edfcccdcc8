"""Asks as a proxy sends them, and a stream that waits for one verdict."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import grpc

from behavry.authorizer.v1 import authorizer_pb2 as wire
from behavry.authorizer.v1 import authorizer_pb2_grpc
from services.common.rpc.client import Link
from tests.fakes import neighbour
from tests.fakes.control import AGENT, SCHEMA_HASH, TENANT

SESSION = "0199d0d0-0000-7000-8000-00000000005e"
DIGEST = "h1:00000000:" + "0" * 64
_ids = itertools.count(1)

FEATURES: dict[str, Any] = {
    "keys": [{"name": "path", "type": "string"}],
    "arg_bytes": 16,
    "depth": 1,
    "leaf_count": 1,
    "item_count": 0,
    "recipient_count": 0,
    "recipient_groups": False,
    "recipient_domains": [],
    "paths": [],
    "urls": [],
    "tables": [],
    "commands": [],
    "overflow": False,
}
FINDINGS: dict[str, Any] = {
    "items": [],
    "max_severity": None,
    "tags": [],
    "content_risk": 0,
    "scan": "none",
    "overflow": False,
}


def request(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": "0199d0d0-0000-7000-8000-0000000000c1",
        "kind": "call",
        "method": "tools/call",
        "server": "files",
        "tool": "read_file",
        "resource": "",
        "resource_kind": "none",
        "arguments_omitted": False,
        "arguments_digest": DIGEST,
        "schema_hash": SCHEMA_HASH,
    }
    return {**values, **changes}


def ask(
    *,
    caller: dict[str, Any] | None = None,
    arguments: bytes = b'{"path":"/tmp/a"}',
    budget_ms: int = 2_000,
    features: Any = None,
    findings: Any = None,
    escalation: str = "",
    **changes: Any,
) -> wire.Ask:
    who: dict[str, Any] = {
        "tenant_id": TENANT,
        "agent_id": AGENT,
        "session_id": SESSION,
        "transport": "http",
        **(caller or {}),
    }
    return wire.Ask(
        id=next(_ids),
        budget_ms=budget_ms,
        caller=wire.Caller(**who),
        request=json.dumps(request(**changes)).encode(),
        features=json.dumps(features or FEATURES).encode(),
        findings=json.dumps(findings or FINDINGS).encode(),
        arguments_json=arguments,
        escalation_id=escalation,
    )


class Decider:
    """An open Decide stream, and the news that came on it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._out: asyncio.Queue[wire.DecideRequest | None] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Future[wire.Verdict]] = {}
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self.tickets: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.revoked: asyncio.Queue[wire.Revoked] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        stub = authorizer_pb2_grpc.AuthorizerServiceStub(self._link.channel)
        self._call = stub.Decide(self._requests(), metadata=self._link.metadata())
        self._reader = asyncio.ensure_future(self._read())
        self._out.put_nowait(wire.DecideRequest(hello=wire.Hello(worker="test")))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def ask(self, *asks: wire.Ask) -> list[wire.Verdict]:
        """All in one message; the verdicts in the order of the asks."""
        loop = asyncio.get_running_loop()
        answers = [self._waiting.setdefault(one.id, loop.create_future()) for one in asks]
        self._out.put_nowait(wire.DecideRequest(asks=wire.Asks(asks=asks)))
        verdicts = list(await asyncio.wait_for(asyncio.gather(*answers), 5))
        theirs = {one.id for one in asks if one.caller.tenant_id == neighbour.TENANT}
        neighbour.unseen(*(one for one in verdicts if one.id not in theirs))
        return verdicts

    async def ticket_changed(self) -> tuple[str, str]:
        """(escalation, state) of the next change that was told."""
        return await asyncio.wait_for(self.tickets.get(), 5)

    async def _requests(self) -> AsyncIterator[wire.DecideRequest]:
        while (message := await self._out.get()) is not None:
            yield message

    async def _read(self) -> None:
        try:
            await self._hear()
        except grpc.aio.AioRpcError as broken:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionError(broken.code().name))

    async def _hear(self) -> None:
        async for message in self._call:
            for verdict in message.verdicts.verdicts:
                self._waiting[verdict.id].set_result(verdict)
            if message.HasField("ticket_changed"):
                changed = message.ticket_changed
                self.tickets.put_nowait((changed.escalation_id, changed.state))
            if message.HasField("revoked"):
                self.revoked.put_nowait(message.revoked)


async def reasons(decider: Decider, *asks: wire.Ask) -> list[str]:
    """Reason codes; empty for what was allowed."""
    decisions = [verdict.decision for verdict in await decider.ask(*asks)]
    allowed = wire.DECISION_RESULT_ALLOW
    return ["" if one.result == allowed else one.reason_code for one in decisions]


async def until(decider: Decider, expected: list[str], *asks: Callable[[], wire.Ask]) -> float:
    """Asks the same again until it is answered so; how many seconds that took."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with asyncio.timeout(5):
        while True:
            if await reasons(decider, *(make() for make in asks)) == expected:
                return loop.time() - began_s
            await asyncio.sleep(0.01)
