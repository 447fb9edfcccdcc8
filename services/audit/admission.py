"""Which records a peer may add, and what a record must say about itself. Decides what is rejected;
a rejected record is kept and acknowledged (writer.py), because one must not stop an outbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.audit import chain
from services.audit.record import Body, is_uuid7, numbered
from services.common.ids import NIL_TENANT

#: Peer -> beginnings of the record types that it may write (audit.md 1.1).
TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "proxy": ("call.", "auth.", "catalog.", "rate."),
    "authorizer": (
        "escalation.", "failopen.", "bundle.", "policy.", "engine.", "kill.", "session.revoked",
        "restriction.", "clock.",
    ),
    "control": ("admin.", "user.", "entitlement.", "license.", "human_session."),
    "audit": ("chain.", "record.", "source."),
}  # fmt: skip
#: What every source tells about itself.
EACH: Final = ("source.opened", "source.mark", "source.closed", "source.gap", "heartbeat")


class Rejected(Exception):
    """The record cannot be taken. `reason` is a word, never a value."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def may_write(peer: str, kind: str) -> bool:
    return kind.startswith(TYPES.get(peer, ())) or (peer in TYPES and kind in EACH)


def check_body(
    body: Body, *, peer: str, source: str, boot: str, n: int, tenant: str, chain_name: str, id: str
) -> None:
    """1. its chain is one  2. it is the record that its entry says  3. this peer may write it.

    Raises Rejected.
    """
    if not chain.is_chain(chain_name):  # 1
        raise Rejected("chain_unknown")
    if tenant == NIL_TENANT and chain_name != "system":
        raise Rejected("chain_unknown")
    if not is_uuid7(id):
        raise Rejected("id_malformed")
    if body.get("v") != "behavry.record/1":  # 2
        raise Rejected("version_unknown")
    if (body.get("id"), body.get("tenant"), body.get("chain")) != (id, tenant, chain_name):
        raise Rejected("entry_mismatch")
    if numbered(body) != (source, boot, n):
        raise Rejected("source_mismatch")
    kind = body.get("type")
    if not isinstance(kind, str) or not may_write(peer, kind):  # 3
        raise Rejected("type_not_allowed")


def check_part(body: Body, *, kind: str, salt: bytes, stored: bytes, mode: str) -> None:
    """A part must be the one that the body commits to. Raises Rejected."""
    if kind not in PART_KINDS or mode not in PART_MODES or len(salt) != 32:
        raise Rejected("part_malformed")
    place = body.get(kind)
    commit = place.get("commit") if isinstance(place, dict) else None
    if commit != chain.commitment(salt, stored).hex():
        raise Rejected("part_mismatch")


PART_KINDS: Final = frozenset({"arguments", "result", "input", "quarantine"})
PART_MODES: Final = frozenset({"full", "redacted", "encrypted", "input"})
