"""A complete, valid `behavry.input/1` for tests, and the way to change it by dotted path."""

import copy
from typing import Any

TENANT = "0192f5c0-0000-7000-8000-000000000001"
AGENT = "0192f5c0-0000-7000-8000-0000000000a1"
REQUEST = "0192f5c0-0000-7000-8000-0000000000f1"

_EXAMPLE: dict[str, Any] = {
    "schema": "behavry.input/1",
    "replay": False,
    "tenant": {"id": TENANT, "slug": "default"},
    "request": {
        "id": REQUEST,
        "kind": "call",
        "method": "tools/call",
        "server": "files",
        "domain": "filesystem",
        "tool": "read_file",
        "action": "read",
        "category": "files",
        "resource": "/srv/data/report.txt",
        "resource_kind": "path",
        "arguments": {"path": "/srv/data/report.txt", "encoding": "utf-8", "limit": 10},
        "arguments_omitted": False,
        "arguments_digest": "sha256:" + "0" * 64,
        "schema_hash": "sha256:" + "1" * 64,
        "schema_pinned": True,
    },
    "catalog": None,
    "features": {
        "keys": [
            {"name": "path", "type": "string"},
            {"name": "encoding", "type": "string"},
            {"name": "limit", "type": "number"},
        ],
        "arg_bytes": 64,
        "depth": 1,
        "leaf_count": 3,
        "item_count": 10,
        "recipient_count": 0,
        "recipient_groups": False,
        "recipient_domains": [],
        "paths": [
            {
                "value": "/srv/data/report.txt",
                "depth": 3,
                "config": False,
                "protected": False,
                "ambiguous": False,
            }
        ],
        "urls": [],
        "tables": [],
        "commands": [],
        "overflow": False,
    },
    "findings": {
        "items": [],
        "max_severity": None,
        "tags": [],
        "content_risk": 0,
        "scan": "none",
        "overflow": False,
    },
    "context": {
        "now": "2026-03-02T10:15:00.000000Z",
        "now_ns": 1772446500000000000,
        "hour": 10,
        "weekday": 1,
        "transport": "http",
        "policy_state": "fresh",
        "bundle_age_s": 3,
        "session_calls": 7,
        "session_age_s": 120,
        "session_flagged": False,
        "session_tags": [],
        "volume_ratio": None,
        "z_max": None,
        "baseline": "none",
        "trust_domain": "trusted",
        "counters_state": "local",
        "counters": {
            "deletes": 0,
            "recipients": 0,
            "items": 0,
            "bytes_out": 0,
            "hosts": 0,
            "calls_minute": 0,
        },
    },
    "agent": {
        "id": AGENT,
        "name": "demo-agent",
        "class": "default",
        "critical": True,
        "type": "autonomous",
        "status": "active",
        "roles": ["reader"],
        "permissions": ["filesystem:read"],
        "tags": ["blue"],
        "restriction": None,
        "budget": "unknown",
    },
    "requester": None,
    "workflow": None,
    "delegation": None,
    "risk": {"score": 0, "tier": "low", "age_s": 0, "flags": []},
}


def example(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The example with changes like `{"request.tool": "rm"}`; the last segment may be new."""
    envelope = copy.deepcopy(_EXAMPLE)
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        at = envelope
        for name in parents:
            at = at[name]
        at[last] = copy.deepcopy(value)
    return envelope
