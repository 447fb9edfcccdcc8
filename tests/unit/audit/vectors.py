"""Golden vectors of the chain hash, written down from the formula of its definition. They do not
change: a chain that was written with them must verify for ever.
"""

from __future__ import annotations

from typing import Any, Final

VECTORS: Final[tuple[dict[str, Any], ...]] = (
    {
        "tenant": "00000000-0000-0000-0000-000000000000",
        "chain": "system",
        "incarnation": 1,
        "seq": 1,
        "committed_at_us": 0,
        "previous_hash": bytes(32),
        "body": b"{}",
        "event_hash": "1d0fd8ccf184def596f47d8741104b6c0aca35bcf1657f5350ef6350986e0e48",
    },
    {
        "tenant": "0198c0de-0000-7000-8000-000000000001",
        "chain": "agent:0198c0de-0000-7000-8000-00000000000a",
        "incarnation": 1,
        "seq": 1,
        "committed_at_us": 1767225600000000,
        "previous_hash": bytes(32),
        "body": b'{"v":"behavry.record/1"}',
        "event_hash": "8846e418490b1fe4c1db89c05e3fe58cb76900d8c423b69b456601cf609708a7",
    },
    {
        "tenant": "0198c0de-0000-7000-8000-000000000001",
        "chain": "agent:0198c0de-0000-7000-8000-00000000000a",
        "incarnation": 1,
        "seq": 2,
        "committed_at_us": 1767225600000001,
        "previous_hash": bytes(range(32)),
        "body": b'{"tool":"za\xc5\xbc\xc3\xb3\xc5\x82\xc4\x87"}',
        "event_hash": "e6833ac173233195fc67deb5eb9489283032765c71b3734c22f2f40e0184948e",
    },
    {
        "tenant": "ffffffff-ffff-4fff-bfff-ffffffffffff",
        "chain": "admin",
        "incarnation": 4294967,
        "seq": 9007199254740993,
        "committed_at_us": -1,
        "previous_hash": bytes.fromhex(
            "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        ),
        "body": b"",
        "event_hash": "d0e8f1c3961ffa71ab60f9c73b10153b4a38391dd4f520f038d63e2ccbd36fc7",
    },
    {
        "tenant": "0198c0de-0000-7000-8000-000000000001",
        "chain": "tenant",
        "incarnation": 2,
        "seq": 1099511627776,
        "committed_at_us": 1125899906842624,
        "previous_hash": bytes.fromhex(
            "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
        ),
        "body": bytes(1000),
        "event_hash": "ac27cdcb3d579d4ff5634b05fcf5ee1fef41cad423ab4e4397f9db729d93af80",
    },
)
