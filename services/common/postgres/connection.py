"""The connection that services hold: asyncpg's own, with each statement counted in a plain integer.

Decides nothing about SQL. `Connection` is the type that store functions take: a pool's or a single
one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import asyncpg

if TYPE_CHECKING:
    SingleConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]
    Connection: TypeAlias = (
        asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    )
else:  # asyncpg's classes are generic in their stubs only
    SingleConnection = asyncpg.Connection
    Connection = asyncpg.Connection


@dataclass(slots=True, kw_only=True)
class Counters:
    """What one pool did since it opened; `statements` counts round trips with BEGIN and COMMIT
    among them.
    """

    statements: int = 0
    connections: int = 0


class CountedConnection(SingleConnection):
    """Counts what goes to the server. A subclass per pool carries that pool's counters."""

    counters: ClassVar[Counters] = Counters()

    async def execute(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109  # asyncpg's signature
    ) -> str:
        self.counters.statements += 1
        return await super().execute(query, *args, timeout=timeout)

    async def executemany(
        self,
        command: str,
        args: Iterable[Sequence[Any]],
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # as above
    ) -> None:
        self.counters.statements += 1
        await super().executemany(command, args, timeout=timeout)

    async def fetch(  # type: ignore[override]  # overloads by record_class, unused here
        self, query: str, *args: Any, **options: Any
    ) -> list[asyncpg.Record]:
        self.counters.statements += 1
        return await super().fetch(query, *args, **options)

    async def fetchrow(  # type: ignore[override]  # as above
        self, query: str, *args: Any, **options: Any
    ) -> asyncpg.Record | None:
        self.counters.statements += 1
        row: asyncpg.Record | None = await super().fetchrow(query, *args, **options)
        return row

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        self.counters.statements += 1
        return await super().fetchval(query, *args, **options)
