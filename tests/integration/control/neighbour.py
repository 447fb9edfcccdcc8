"""The second tenant that every test of control has beside it: how it is known at sight, and that
nothing shows any of it. What it has is neighbour_rows.py's; whoever may see it says so at the call.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from dataclasses import dataclass
from typing import Final

from services.common.postgres.connection import SingleConnection
from services.common.rego.names import tenant_segment
from services.control.features import Entitlements, Features
from tests.fakes.neighbour import ID_MARK, MARK, TENANT

__all__ = ["ID_MARK", "MARK", "TENANT"]  # who it is, fakes/neighbour.py says

SLUG: Final = f"{MARK}-tenant"
#: Both marks as text, and as PostgreSQL or a log would show their bytes.
PATTERN: Final = "|".join(
    (MARK, MARK.encode().hex(), ID_MARK.replace("-", "-?"), ID_MARK.encode().hex())
)
_SEEN: Final = re.compile(PATTERN.encode(), re.IGNORECASE)
#: Something of this is in whatever the pattern finds, and is looked for in a tenth of the time.
_HINTS: Final = tuple(
    hint for word in (MARK.encode(), ID_MARK.encode()[:8]) for hint in (word, word.hex().encode())
)


def id_of(table: str, row: int = 1, column: str = "id") -> str:
    """An id that it has, or that its rows name."""
    told = hashlib.sha256(f"{table}.{column}.{row}".encode()).hexdigest()
    return f"{ID_MARK}{told[:12]}"


def name_of(column: str, row: int = 1) -> str:
    return f"{MARK}-{column.replace('_', '-')}-{row}"


def has_a_plan(features: Features) -> None:
    """Entitlements knows every tenant: while it does not, no first bundle is built."""
    if features.of(TENANT) is None:
        features.update(
            Entitlements(
                tenant=TENANT, plan="enterprise", status="ACTIVE", plan_expires_at_s=None,
                revision=1, features=(),
            )
        )  # fmt: skip


# What nobody sees and nothing changes -----------------------------------------------------------

_TABLES: Final = """
SELECT c.relname AS name FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
WHERE c.relnamespace = 'control'::regnamespace AND c.relkind = 'r' ORDER BY 1"""
_STATE: Final = """
SELECT '{table}' AS name,
       (SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM control.{table} t
        WHERE {key} = '{tenant}') AS rows,
       (SELECT min(t::text) FROM control.{table} t
        WHERE {key} <> '{tenant}' AND t::text ~* '{pattern}') AS shown"""


@dataclass(frozen=True, kw_only=True)
class Found:
    """By table: the hash of its rows, and a row of somebody else's that shows something of it. With
    the newest bundles, which are of all tenants.
    """

    rows: dict[str, str | None]
    shown: dict[str, str]
    bundles: tuple[bytes, ...]


async def tables(connection: SingleConnection) -> list[str]:
    """Every table of control that has tenants."""
    return [row["name"] for row in await connection.fetch(_TABLES)]


async def found(connection: SingleConnection) -> Found:
    """A table that has none of its rows has None."""
    keys = dict.fromkeys(await tables(connection), "tenant_id") | {"tenants": "id"}
    asked = [
        _STATE.format(table=table, key=key, tenant=TENANT, pattern=PATTERN)
        for table, key in keys.items()
    ]
    told = await connection.fetch(" UNION ALL ".join(asked))
    bundles = await connection.fetch(
        "SELECT archive FROM control.bundles ORDER BY serial DESC LIMIT 3"
    )
    return Found(
        bundles=tuple(row["archive"] for row in bundles),
        rows={row["name"]: row["rows"] for row in told},
        shown={row["name"]: row["shown"] for row in told if row["shown"]},
    )


def untouched(before: Found, after: Found) -> None:
    """Raises AssertionError where one of its rows changed, came or went, or is in another's."""
    changed = {name for name, rows in after.rows.items() if rows != before.rows.get(name)}
    assert not changed, f"rows of another tenant changed in {sorted(changed)}"
    assert not after.shown, f"another tenant's rows show something of it: {after.shown}"
    for archive in after.bundles:
        unseen_in_bundle(archive)


def unseen(what: str, *texts: str | bytes) -> None:
    """Raises AssertionError where something of it is in one of the texts."""
    for text in texts:
        raw = text.encode(errors="backslashreplace") if isinstance(text, str) else text
        low = raw.lower()
        found = _SEEN.search(low) if any(hint in low for hint in _HINTS) else None
        assert not found, f"{what} shows {found[0]!r} of another tenant: {raw[:2000]!r}"


def unseen_in_bundle(archive: bytes) -> None:
    """A plane's bundle is of all its tenants: each has an entry and modules of its own, and beside
    these the other one is nowhere.
    """
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        read = {entry.name: tar.extractfile(entry) for entry in tar.getmembers()}
        files = {name: file.read() for name, file in read.items() if file is not None}
    segment = tenant_segment(TENANT)
    for name, body in files.items():
        if name == "data.json":
            state = json.loads(body)
            state["behavry"]["state"]["tenants"].pop(TENANT, None)
            unseen(name, json.dumps(state))
        elif name == ".manifest":
            said = json.loads(body)
            said["metadata"]["tenants"] = [
                one for one in said["metadata"]["tenants"] if one != TENANT
            ]
            unseen(name, json.dumps(said))
        elif segment not in name and not name.startswith(".signatures"):
            unseen(name, body)
