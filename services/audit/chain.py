"""Links records into a chain. Decides what "linked" means; what is stored, and who may store it, is
the work of others (store.py, writer.py).

Pure, and standard library only: whoever verifies a copy of the chain needs nothing else.
"""

from __future__ import annotations

import hashlib
import re
import struct
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

#: Domain separation and version of the hash (audit.md 3.2).
_TAG: Final = b"\x02behavry/chain/1"
_PLACE: Final = struct.Struct(">IQq")  # incarnation, seq, committed_at in microseconds
FIRST_PREVIOUS: Final = bytes(32)
FIRST_INCARNATION: Final = 1

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NAME: Final = re.compile(rf"(?:agent|device):{_UUID}|tenant|admin|system")


class Head(NamedTuple):
    """The end of a chain: what the next record links to. seq 0: nothing yet."""

    chain: str
    incarnation: int
    seq: int
    event_hash: bytes
    committed_at_us: int


class Link(NamedTuple):
    """A record's place."""

    chain: str
    incarnation: int
    seq: int
    committed_at_us: int
    previous_hash: bytes
    event_hash: bytes

    @property
    def head(self) -> Head:
        return Head(self.chain, self.incarnation, self.seq, self.event_hash, self.committed_at_us)


class NotAChain(ValueError):
    """The name is none of `agent:<uuid>`, `device:<uuid>`, `tenant`, `admin`, `system`."""


def is_chain(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def beginning(chain: str) -> Head:
    """The head of a chain that has no record yet."""
    if not is_chain(chain):
        raise NotAChain(chain)
    return Head(chain, FIRST_INCARNATION, 0, FIRST_PREVIOUS, 0)


def link(head: Head, *, tenant: str, body: bytes, now_us: int) -> Link:
    """1. next position  2. a time after the head's, whatever the clock says  3. hash over both."""
    seq = head.seq + 1  # 1
    committed_at_us = max(now_us, head.committed_at_us + 1)  # 2
    hashed = event_hash(  # 3
        tenant=tenant,
        chain=head.chain,
        incarnation=head.incarnation,
        seq=seq,
        committed_at_us=committed_at_us,
        previous_hash=head.event_hash,
        body=body,
    )
    return Link(head.chain, head.incarnation, seq, committed_at_us, head.event_hash, hashed)


def event_hash(
    *,
    tenant: str,
    chain: str,
    incarnation: int,
    seq: int,
    committed_at_us: int,
    previous_hash: bytes,
    body: bytes,
) -> bytes:
    """The one maker of these bytes; migrations/0002_verify_links.sql repeats it as a check."""
    return hashlib.sha256(
        _prefix(tenant, chain)
        + _PLACE.pack(incarnation, seq, committed_at_us)
        + previous_hash
        + hashlib.sha256(body).digest()
    ).digest()


@lru_cache(maxsize=65_536)
def _prefix(tenant: str, chain: str) -> bytes:
    return _TAG + UUID(tenant).bytes + hashlib.sha256(chain.encode()).digest()


def commitment(salt: bytes, stored: bytes) -> bytes:
    """What a record's `commit` says about a part (audit.md 1.3)."""
    return hashlib.sha256(b"\x03" + salt + stored).digest()
