"""Holds what entitlements says of many tenants, as control does, in a process of its own: what that
takes shows nowhere else. Prints `{"tenants", "grown_bytes", "spent_s", "again_bytes"}`.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from behavry.entitlements.v1 import entitlements_pb2 as wire
from services.common.clock import SystemClock
from services.control.clients.entitlements_wire import entitlements_of
from services.control.features import Entitlements, Features


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def messages(count: int) -> Iterator[bytes]:
    """As the service writes them: no two tenants share anything but their plan."""
    one = wire.TenantEntitlements(plan="professional", status="VALID", revision=7)
    for number in range(1, 18):
        one.features.add(
            feature=number,
            allowed=True,
            mode=wire.MODE_ON,
            source=wire.SOURCE_PLAN,
            required_plan="professional",
        )
    for number in range(count):
        one.tenant_id = str(uuid4())
        one.plan_expires_at = 1_800_000_000 + number
        for feature in one.features:
            feature.changes_at = one.plan_expires_at
        yield one.SerializeToString()


def told(raw: list[bytes]) -> dict[object, Entitlements]:
    held = (entitlements_of(wire.TenantEntitlements.FromString(one)) for one in raw)
    return {one.tenant: one for one in held}


def main() -> None:
    count = int(sys.argv[1])
    raw, features = list(messages(count)), Features(SystemClock())
    entitlements_of(wire.TenantEntitlements.FromString(raw[0]))
    before, began = resident_bytes(), time.process_time()
    features.sync("e1", 7, told(raw))  # type: ignore[arg-type]  # by their ids
    spent_s, after = time.process_time() - began, resident_bytes()
    features.sync("e1", 7, told(raw))  # type: ignore[arg-type]  # by their ids
    answer = {
        "tenants": len(features.kept().tenants),
        "grown_bytes": after - before,
        "spent_s": spent_s,
        "again_bytes": resident_bytes() - before,
    }
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
