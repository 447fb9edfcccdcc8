"""A running audit service on a real database, and a shipper that a test drives by hand: it sends
what it is told in the order it is told, repeats itself, vanishes, or lies.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc

from behavry.audit.v1 import audit_pb2, audit_pb2_grpc
from services.audit.app import Running, running
from services.audit.settings import AuditSettings
from services.common.clock import Clock
from services.common.ids import uuid7
from services.common.outbox.parts import make_part
from services.common.outbox.record import canonical_bytes
from services.common.rpc.client import Link, dial
from services.common.rpc.peers import Identity
from services.common.settings import load
from tests.fakes.clock import START_NS
from tests.fakes.neighbour import Answers, Rows
from tests.fakes.postgres import Database

PATIENCE_S = 5.0
AGENT_CHAIN = "agent:11111111-1111-4111-8111-111111111111"
_PEERS = ("proxy", "authorizer", "control", "operator", "entitlements")
_times = itertools.count(START_NS, 1_000_000)


def audit_settings(
    directory: Path,
    database: Database,
    *,
    writer_db_url: str | None = None,
    mode: str = "standalone",
) -> AuditSettings:
    peers = directory / "peers"
    peers.mkdir(parents=True, exist_ok=True)
    (directory / "run").mkdir(exist_ok=True)
    for peer in _PEERS:
        token = peers / f"{peer}.token"
        if not token.exists():
            token.write_text(secrets.token_hex(32))
    return load(
        AuditSettings,
        {
            "BEHAVRY_STATE_DIR": str(directory),
            "BEHAVRY_ENV": "development",
            "BEHAVRY_MODE": mode,
            "BEHAVRY_AUDIT_WRITER_DB_URL": writer_db_url or database.dsn("behavry_audit_writer"),
            "BEHAVRY_AUDIT_READER_DB_URL": database.dsn("behavry_audit_reader"),
        },
    )


@asynccontextmanager
async def audit_service(
    database: Database,
    *,
    clock: Clock | None = None,
    writer_db_url: str | None = None,
    mode: str = "standalone",
) -> AsyncIterator[AuditService]:
    with tempfile.TemporaryDirectory(prefix="bva-") as name:
        settings = audit_settings(Path(name), database, writer_db_url=writer_db_url, mode=mode)
        async with running(settings, clock=clock) as service:
            yield AuditService(settings=settings, running=service)


@dataclass(frozen=True, kw_only=True)
class AuditService:
    settings: AuditSettings
    running: Running

    @asynccontextmanager
    async def link(self, peer: str) -> AsyncIterator[Link]:
        identity = Identity(peer, self.settings.peers_dir / f"{peer}.token")
        async with dial(self.running.address, identity) as link:
            yield link

    @asynccontextmanager
    async def reader(self, peer: str = "control") -> AsyncIterator[tuple[Any, Link]]:
        async with self.link(peer) as link:
            yield Answers(self.reader_stub(link)), link

    @staticmethod
    def reader_stub(link: Link) -> Any:
        """Whose answers nobody looks at: of the second tenant's own."""
        return audit_pb2_grpc.AuditReaderServiceStub(link.channel)

    @asynccontextmanager
    async def shipper(self, source: Source, *, peer: str = "proxy") -> AsyncIterator[Shipper]:
        """Opens the stream and has its position."""
        async with self.link(peer) as link:
            stub = Answers(audit_pb2_grpc.AuditWriterServiceStub(link.channel))
            call = stub.Append(metadata=link.metadata())
            await call.write(
                audit_pb2.AppendRequest(open=audit_pb2.Open(source=source.id, boot=source.boot))
            )
            answer = await asyncio.wait_for(call.read(), PATIENCE_S)
            if answer is grpc.aio.EOF:
                await call  # raises what it ended with
            try:
                yield Shipper(call=call, position=answer.position.pos)
            finally:
                call.cancel()


@dataclass(kw_only=True)
class Source:
    """An outbox's identity and its numbering."""

    id: str = field(default_factory=lambda: str(uuid4()))
    boot: str = field(default_factory=lambda: uuid7(next(_times)))
    kind: str = "proxy"
    pos: int = 0
    numbers: dict[str, int] = field(default_factory=dict)

    def restart(self) -> None:
        self.boot = uuid7(next(_times))
        self.numbers = {}

    def entry(
        self,
        tenant: str,
        *,
        chain: str = AGENT_CHAIN,
        type: str = "call.intent",
        parts: Sequence[tuple[str, bytes]] = (),
        **fields: Any,
    ) -> audit_pb2.Entry:
        """The next record of this tenant."""
        self.pos += 1
        n = self.numbers[tenant] = self.numbers.get(tenant, 0) + 1
        now_ns = next(_times)
        made = [
            (kind, make_part(kind, stored, mode="input" if kind == "input" else "full"))  # type: ignore[arg-type]  # the test's own kinds
            for kind, stored in parts
        ]
        body = {
            "v": "behavry.record/1",
            "type": type,
            "id": uuid7(now_ns),
            "tenant": tenant,
            "chain": chain,
            "at": now_ns // 1000,
            "queued_at": now_ns // 1000,
            "plane": "dp-local",
            "src": {"kind": self.kind, "id": self.id, "boot": self.boot, "n": n, "version": "0"},
            **{kind: {"commit": part.commit} for kind, part in made},
            **fields,
        }
        return audit_pb2.Entry(
            pos=self.pos,
            boot=self.boot,
            tenant_id=tenant,
            chain=chain,
            n=n,
            event_id=str(body["id"]),
            body=canonical_bytes(body),
            parts=[
                audit_pb2.Part(kind=kind, salt=part.salt, stored=part.stored, mode=part.mode)
                for kind, part in made
            ],
        )

    def calls(self, tenant: str, count: int, **options: Any) -> list[audit_pb2.Entry]:
        return [
            self.entry(tenant, tool=f"tool_{i}", server="time", **options) for i in range(count)
        ]


@dataclass(kw_only=True)
class Shipper:
    call: Any
    position: int

    async def send(self, entries: Iterable[audit_pb2.Entry]) -> None:
        await self.call.write(audit_pb2.AppendRequest(batch=audit_pb2.Batch(entries=list(entries))))

    async def acked(self, pos: int) -> int:
        """Waits for an acknowledgement of at least `pos`."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                answer = await self.call.read()
                if answer is grpc.aio.EOF:
                    await self.call
                    raise AssertionError("the stream ended without an acknowledgement")
                if answer.ack.committed_pos >= pos:
                    return int(answer.ack.committed_pos)

    async def ship(self, entries: Sequence[audit_pb2.Entry]) -> None:
        await self.send(entries)
        await self.acked(entries[-1].pos)

    async def end(self) -> grpc.aio.AioRpcError:
        """The error that the stream ends with."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
                await self.call
        except grpc.aio.AioRpcError as failure:
            return failure
        raise AssertionError("the stream ended well")


@asynccontextmanager
async def as_role(database: Database, role: str, tenant: str | None) -> AsyncIterator[Any]:
    """A connection of that role, inside a transaction with that tenant set (or none)."""
    connection = await asyncpg.connect(database.dsn(role))
    try:
        async with connection.transaction():
            if tenant is not None:
                await connection.execute(
                    "SELECT set_config('behavry.tenant_id', $1, true)", str(UUID(tenant))
                )
            yield Rows(connection)
    finally:
        await connection.close()


async def as_superuser(database: Database, *statements: str) -> None:
    """What no role of ours may do: the attacker's way in."""
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def stored(database: Database, tenant: str) -> list[asyncpg.Record]:
    """All events of a tenant, in the order of their chains."""
    async with as_role(database, "behavry_audit_reader", tenant) as connection:
        rows: list[asyncpg.Record] = await connection.fetch(
            "SELECT * FROM audit.events ORDER BY chain, seq, committed_at"
        )
        return rows
