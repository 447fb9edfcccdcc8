"""Verifies chains at level `links`: that nobody edited, cut, swapped or inserted records since they
were linked. Decides the verdict; reading rows, and telling people, is the work of others.

Links cannot show a tail that was cut together with its head, nor a chain rewritten as a whole: that
takes signed checkpoints. The verdict is therefore never shown without its assurance, `links`.

Standard library and chain.py, record.py only: the command verifies copies with this same file. The
second verifier, in SQL, is migrations/0002_verify_links.sql.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from services.audit.chain import FIRST_PREVIOUS, Head, commitment, event_hash
from services.audit.record import Body, Columns, columns, numbered

ASSURANCE: Final = "links"
MAX_FINDINGS: Final = 100
_PAGE: Final = 1 << 12


class Row(NamedTuple):
    """An event as it is stored. `derived` None: a copy without columns."""

    chain: str
    incarnation: int
    seq: int
    committed_at_us: int
    event_id: str
    body: bytes
    previous_hash: bytes
    event_hash: bytes
    derived: Columns | None = None


class StoredPart(NamedTuple):
    event_id: str
    kind: str
    salt: bytes
    stored: bytes


class Finding(NamedTuple):
    """What is wrong, and where: at this position of this chain. Sorts lowest first."""

    chain: str
    seq: int
    code: str


class Verdict(NamedTuple):
    """`ok`, `tampered` or `incomplete`; `findings` lowest first, at most MAX_FINDINGS."""

    verdict: str
    findings: tuple[Finding, ...]
    rows: int
    chains: int
    why: str = ""
    assurance: str = ASSURANCE


class Verifier:
    """Fed all rows of a tenant, or of one of its chains, ordered by chain and seq. `heads`: the
    ends that the store itself remembers.
    """

    def __init__(
        self, tenant: str, heads: Mapping[str, Head], *, only_chain: str | None = None
    ) -> None:
        self._tenant = tenant
        self._heads = {name: head for name, head in heads.items() if only_chain in {None, name}}
        self._whole = only_chain is None
        self._seen: set[str] = set()
        self._opened: set[str] = set()
        self._sources = _Sources()
        self._walk: _ChainWalk | None = None
        self.findings: list[Finding] = []
        self.rows = 0

    @property
    def chain(self) -> str:
        """Where the walk is."""
        return "" if self._walk is None else self._walk.chain

    def add(self, row: Row, parts: Iterable[StoredPart] = ()) -> None:
        """1. its place  2. its hash  3. what it says of itself  4. columns  5. parts: the first of
        these that is wrong is the row's finding.
        """
        if self._walk is None or self._walk.chain != row.chain:
            self._leave()
            self._walk = _ChainWalk(row.chain, self._find)
            self._seen.add(row.chain)
        self.rows += 1
        body = _parsed(row.body)
        code = self._walk.step(row) or self._wrong_inside(row, body, parts)
        if code:
            self._find(row.chain, row.seq, code)
        self._remember(body)

    def verdict(self) -> Verdict:
        """After the last row: chains and numbers that are missing altogether."""
        self._leave()
        self._walk = None
        gone = set(self._heads) - self._seen
        if self._whole:
            gone |= self._opened - self._seen
        self.findings.extend(Finding(chain, 1, "chain_missing") for chain in gone)
        if self._whole and not self.findings:
            self.findings.extend(self._sources.gaps())
        lowest: dict[tuple[str, int], Finding] = {}
        for finding in self.findings:  # one per position, the first that was found there
            lowest.setdefault(finding[:2], finding)
        found = tuple(sorted(lowest.values())[:MAX_FINDINGS])
        return Verdict(
            "tampered" if found else "ok", found, self.rows, len(self._seen | set(self._heads))
        )

    def _leave(self) -> None:
        if self._walk is not None:
            self._walk.end(self._heads.get(self._walk.chain))

    def _wrong_inside(self, row: Row, body: Body | None, parts: Iterable[StoredPart]) -> str | None:
        recomputed = event_hash(
            tenant=self._tenant,
            chain=row.chain,
            incarnation=row.incarnation,
            seq=row.seq,
            committed_at_us=row.committed_at_us,
            previous_hash=row.previous_hash,
            body=row.body,
        )
        if body is not None and _is_foreign(body, self._tenant, row.chain):
            return "foreign_row"
        if body is None or recomputed != row.event_hash:
            return "body_mismatch"
        if row.derived is not None and (
            columns(body) != row.derived or body.get("id") != row.event_id
        ):
            return "column_drift"
        if not all(_is_committed(body, part) for part in parts):
            return "part_mismatch"
        return None

    def _remember(self, body: Body | None) -> None:
        """What the rest of the chains must agree with."""
        if body is None:
            return
        if (number := numbered(body)) is not None:
            self._sources.have(number.source, number.boot, number.n)
        src = body.get("src")
        if isinstance(src, dict) and src.get("kind") == "audit":
            self._hear(body)

    def _hear(self, body: Body) -> None:
        """Audit's own records tell which chains exist, and which numbers it missed or rejected."""
        source = body.get("source")
        match body.get("type"):
            case "chain.opened" if isinstance(body.get("resource"), str):
                self._opened.add(body["resource"])
            case "source.gap" | "record.rejected" if isinstance(source, dict):
                self._sources.excuse(source)

    def _find(self, chain: str, seq: int, code: str) -> None:
        if len(self.findings) < 10 * MAX_FINDINGS:
            self.findings.append(Finding(chain, seq, code))


class _ChainWalk:
    """One chain, position by position. After a break it goes on from the row found there, so that
    one manipulation is not told of every row behind it.
    """

    def __init__(self, chain: str, find: Callable[[str, int, str], None]) -> None:
        self.chain = chain
        self._find = find
        self._seq = 0
        self._hash = FIRST_PREVIOUS
        self._at_us = -1

    def step(self, row: Row) -> str | None:
        """What is wrong with the row's place; what is missing before it is told by itself."""
        code = None
        if row.seq <= self._seq:
            code = "seq_duplicate"
        elif row.seq != self._seq + 1:
            missing = "seq_gap" if self._seq else "prefix_missing"
            self._find(self.chain, self._seq + 1, missing)
        elif row.previous_hash != self._hash:
            code = "link_broken"
        if code is None and row.committed_at_us <= self._at_us:
            code = "time_regressed"
        self._seq, self._hash, self._at_us = row.seq, row.event_hash, row.committed_at_us
        return code

    def end(self, head: Head | None) -> None:
        """The store's own memory of the end must be this end."""
        if head is None:
            self._find(self.chain, 1, "link_broken")
        elif self._seq < head.seq:
            self._find(self.chain, self._seq + 1, "tail_truncated")
        elif self._seq > head.seq:
            self._find(self.chain, head.seq + 1, "link_broken")
        elif self._hash != head.event_hash:
            self._find(self.chain, head.seq, "link_broken")


class _Sources:
    """Numbers are gap-free per source and start: one that is missing, and that audit itself did not
    note as missing or rejected, was taken out of the store.
    """

    def __init__(self) -> None:
        self._pages: dict[tuple[str, str], dict[int, bytearray]] = {}
        self._excused: dict[tuple[str, str], list[tuple[int, int]]] = {}

    def have(self, source: str, boot: str, n: int) -> None:
        pages = self._pages.setdefault((source, boot), {})
        page = pages.get(n // _PAGE)
        if page is None:
            page = pages[n // _PAGE] = bytearray(_PAGE)
        page[n % _PAGE] = 1

    def excuse(self, source: Mapping[str, Any]) -> None:
        first, last = source.get("first", source.get("n")), source.get("last", source.get("n"))
        name, boot = source.get("id"), source.get("boot")
        if not isinstance(name, str) or not isinstance(boot, str):
            return
        if type(first) is int and type(last) is int:
            self._excused.setdefault((name, boot), []).append((first, last))

    def gaps(self) -> list[Finding]:
        """Named by the source and its start, at the first number of each missing range."""
        return [
            Finding(f"source:{source}/{boot}", first, "source_gap")
            for source, boot in self._pages
            for missing in self._missing((source, boot))
            for first in _uncovered(missing, self._excused.get((source, boot), []))
        ][:MAX_FINDINGS]

    def _missing(self, key: tuple[str, str]) -> Iterator[tuple[int, int]]:
        """Ranges below the highest number that are not there."""
        expected = 1
        for index, page in sorted(self._pages[key].items()):
            at = page.find(1)
            while at >= 0:
                first = index * _PAGE + at
                if first > expected:
                    yield expected, first - 1
                end = page.find(0, at)
                expected = index * _PAGE + (end if end >= 0 else _PAGE)
                at = page.find(1, end) if end >= 0 else -1


def _uncovered(missing: tuple[int, int], excused: list[tuple[int, int]]) -> Iterator[int]:
    """The first number of each part of the range that nothing excuses."""
    at, last = missing
    for low, high in sorted(excused):
        if high < at or low > last:
            continue
        if low > at:
            yield at
        at = max(at, high + 1)
    if at <= last:
        yield at


def _parsed(body: bytes) -> Body | None:
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _is_foreign(body: Body, tenant: str, chain: str) -> bool:
    """The body names another tenant or chain than the one in which it lies."""
    named = (body.get("tenant"), body.get("chain"))
    return named != (tenant, chain) and all(isinstance(name, str) for name in named)


def _is_committed(body: Body, part: StoredPart) -> bool:
    place = body.get(part.kind)
    commit = place.get("commit") if isinstance(place, dict) else None
    return commit == commitment(part.salt, part.stored).hex()
