"""Identities as types, and the maker of time-ordered ones. A `str` is never a tenant."""

from __future__ import annotations

import os
from typing import Final, NewType
from uuid import UUID

TenantId = NewType("TenantId", str)
AgentId = NewType("AgentId", str)
SessionId = NewType("SessionId", str)
RequestId = NewType("RequestId", str)
EventId = NewType("EventId", str)
PlaneId = NewType("PlaneId", str)
ServerSlug = NewType("ServerSlug", str)
SourceId = NewType("SourceId", str)
BootId = NewType("BootId", str)

#: The tenant of records whose tenant cannot be told (audit.md 1.1).
NIL_TENANT: Final = TenantId("00000000-0000-0000-0000-000000000000")


def uuid7(now_ns: int) -> str:
    """A UUIDv7 (RFC 9562 5.7) of `now_ns`, wall-clock nanoseconds since 1970."""
    milliseconds = now_ns // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & ((1 << 48) - 1)) << 80
    value |= 0x7 << 76
    value |= ((random >> 64) & 0xFFF) << 64
    value |= 0b10 << 62
    value |= random & ((1 << 62) - 1)
    return str(UUID(int=value))


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in its one canonical spelling."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
