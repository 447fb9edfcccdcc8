"""Every manipulation of stored chains is told by its exact code and first position, by both
verifiers where it is one of links; chains that nobody touched are `ok`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg
import pytest
import yaml

from services.audit import reading
from services.audit.chain import FIRST_PREVIOUS, event_hash
from services.audit.verify import Finding, Verdict, Verifier
from services.common.postgres.pool import open_pool
from tests.fakes.audit import Source, as_role, audit_service
from tests.fakes.postgres import Database
from tests.promises import promise

pytestmark = pytest.mark.needs_postgres

CASES: Final[list[dict[str, Any]]] = yaml.safe_load(
    (Path(__file__).parent / "manipulations.yaml").read_text()
)
CHAINS: Final = tuple(f"agent:{n * 8}-{n * 4}-4{n * 3}-8{n * 3}-{n * 12}" for n in "123")


@dataclass(frozen=True)
class Chains:
    database: Database
    tenant: str
    tampered: str = CHAINS[1]

    async def tamper(self, statements: list[str]) -> None:
        """As the superuser: no role of the service may do any of this."""
        connection = await asyncpg.connect(self.database.admin_dsn)
        try:
            for statement in statements:
                if statement.startswith("$rehash from "):
                    await self._rehash(connection, int(statement.rsplit(" ", 1)[1]))
                else:
                    await connection.execute(self._filled(statement))
        finally:
            await connection.close()

    def _filled(self, statement: str) -> str:
        for name, value in {
            "$event": "audit.events_default",
            "$key": f"tenant_id = '{self.tenant}' AND chain = '{self.tampered}'",
            "$tenant": self.tenant,
            "$chain": self.tampered,
            "$other": CHAINS[2],
        }.items():
            statement = statement.replace(name, value)
        return statement

    async def _rehash(self, connection: Any, first: int) -> None:
        """All links from `first` on made anew, and the head with them."""
        rows = await connection.fetch(
            self._filled("SELECT * FROM $event WHERE $key ORDER BY seq"),
        )
        previous = FIRST_PREVIOUS
        for row in rows:
            if row["seq"] >= first:
                hashed = event_hash(
                    tenant=self.tenant,
                    chain=row["chain"],
                    incarnation=row["incarnation"],
                    seq=row["seq"],
                    committed_at_us=row["committed_at"],
                    previous_hash=previous,
                    body=row["body"],
                )
                await connection.execute(
                    self._filled(
                        "UPDATE $event SET previous_hash = $1, event_hash = $2"
                        " WHERE $key AND seq = $3"
                    ),
                    previous,
                    hashed,
                    row["seq"],
                )
                previous = hashed
            else:
                previous = row["event_hash"]
        await connection.execute(
            self._filled("UPDATE audit.chain_heads SET event_hash = $1 WHERE $key"), previous
        )

    async def verdict(self, only_chain: str | None = None) -> Verdict:
        dsn = self.database.dsn("behavry_audit_reader")
        async with (
            open_pool(dsn, max_size=1) as pool,
            reading.snapshot(pool, self.tenant) as connection,
        ):
            heads = {head.chain: head for head in await reading.heads(connection, self.tenant)}
            verifier = Verifier(self.tenant, heads, only_chain=only_chain)
            async for group in reading.rows(connection, self.tenant, only_chain):
                for row, parts in group:
                    verifier.add(row, parts)
            return verifier.verdict()

    async def sql_findings(self, only_chain: str | None = None) -> list[Finding]:
        async with as_role(self.database, "behavry_audit_reader", self.tenant) as connection:
            rows = await connection.fetch("SELECT * FROM audit.verify_links($1)", only_chain)
        return [Finding(*row) for row in rows]


@pytest.fixture
async def chains(audit_database: Database) -> Chains:
    tenant, source = str(uuid4()), Source()
    entries = [
        source.entry(tenant, chain=chain, tool=f"tool_{i}", parts=[("arguments", b"%d" % i)])
        for i in range(40)
        for chain in CHAINS
    ]
    async with audit_service(audit_database) as audit, audit.shipper(source) as shipper:
        await shipper.ship(entries)
    return Chains(audit_database, tenant)


async def test_chains_that_nobody_touched_are_ok(chains: Chains) -> None:
    verdict = await chains.verdict()

    assert ("ok", (), "links") == (verdict.verdict, verdict.findings, verdict.assurance)
    assert (124, 4) == (verdict.rows, verdict.chains)
    assert [] == await chains.sql_findings()


@promise("audit:tampering-named")
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
async def test_a_manipulation_is_named_by_code_and_position(
    chains: Chains, case: dict[str, Any]
) -> None:
    await chains.tamper(case["does"])

    expected = Finding(chains.tampered, case["seq"], case["code"])
    verdict = await chains.verdict()
    assert ("tampered", expected) == (verdict.verdict, verdict.findings[0])
    assert {chains.tampered} == {found.chain for found in verdict.findings}
    if case.get("sql", True):
        found = await chains.sql_findings()
        assert expected == found[0]
        assert {chains.tampered} == {finding.chain for finding in found}


async def test_one_manipulation_is_told_once_and_not_of_every_record_behind_it(
    chains: Chains,
) -> None:
    await chains.tamper(["DELETE FROM $event WHERE $key AND seq = 18"])

    assert 1 == len((await chains.verdict()).findings)
    assert 1 == len(await chains.sql_findings())


async def test_several_manipulations_are_told_lowest_first(chains: Chains) -> None:
    await chains.tamper(
        [
            "UPDATE $event SET body = '{}' WHERE $key AND seq = 30",
            "DELETE FROM $event WHERE $key AND seq = 5",
        ]
    )

    assert [(5, "seq_gap"), (30, "body_mismatch")] == [
        (found.seq, found.code) for found in (await chains.verdict()).findings
    ]


async def test_the_other_chains_stay_ok_one_by_one(chains: Chains) -> None:
    await chains.tamper(["DELETE FROM $event WHERE $key AND seq = 18"])

    assert "ok" == (await chains.verdict(CHAINS[0])).verdict
    assert "tampered" == (await chains.verdict(chains.tampered)).verdict
    assert [] == await chains.sql_findings(CHAINS[0])


async def test_records_taken_out_with_all_links_made_anew_are_missed_by_their_number(
    chains: Chains,
) -> None:
    """The whole tail of a chain with its head: links alone cannot tell, source numbers can."""
    await chains.tamper(
        [
            "DELETE FROM $event WHERE $key AND seq > 38",
            """UPDATE audit.chain_heads h SET seq = 38, event_hash = e.event_hash FROM $event e
            WHERE h.tenant_id = e.tenant_id AND h.chain = e.chain AND e.tenant_id = '$tenant'
            AND e.chain = '$chain' AND e.seq = 38""",
        ]
    )

    verdict = await chains.verdict()
    # Records are dealt out to three chains in turn: the 39th of the second is number 116.
    assert [(116, "source_gap"), (119, "source_gap")] == [
        (found.seq, found.code) for found in verdict.findings
    ]


async def test_a_verifier_that_trusts_the_first_row_it_finds_fails_this_corpus(
    chains: Chains,
) -> None:
    """The corpus has teeth: without the rule that a chain starts at 1, a cut prefix passes."""
    await chains.tamper(["DELETE FROM $event WHERE $key AND seq <= 7"])

    findings = (await chains.verdict()).findings
    assert [Finding(chains.tampered, 1, "prefix_missing")] == [
        found for found in findings if found.code != "source_gap"
    ]
