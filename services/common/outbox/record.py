"""The canonical bytes of a record, `behavry.record/1`: made once by its source, hashed and stored
as they are.

Decides what a body may hold and how an oversized one is trimmed. Within this profile `orjson` with
sorted keys writes exactly what RFC 8785 prescribes: keys are ASCII, numbers are integers below
2^53, strings are valid Unicode. What the fields mean is their sources' and readers' business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, cast

import msgspec
import orjson

from services.common.errors import BehavryError
from services.common.ids import EventId, TenantId

VERSION: Final = "behavry.record/1"
MAX_BODY_BYTES: Final = 32 * 1024
MAX_DEPTH: Final = 8
KEPT_FINDINGS: Final = 20
_KEY: Final = re.compile(r"[a-z0-9_]{1,40}")
_OPTIONS: Final = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
#: Keys that were found good; field names are few, so this stays small, and it is bounded.
_good_keys: set[str] = set()
#: Types that need no further look; how large an integer may be is the encoder's rule.
_PLAIN: Final = frozenset({str, bool, int})
_NESTED: Final = frozenset({dict, list})

Json = Any
#: Digest of a text that is too long to keep.
DigestText = Callable[[bytes], str]


class ProfileError(BehavryError):
    """A body outside the profile. The message names the rule, never a value."""

    def __init__(self, rule: str) -> None:
        super().__init__("INVALID_ARGUMENT", f"not a {VERSION} body: {rule}")
        self.rule = rule


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a source wants to have recorded. The outbox adds `v tenant chain queued_at plane src`.

    `fields` may hold None, which means absent. The outbox takes it over: do not change it after.
    """

    type: str
    tenant: TenantId
    chain: str
    at_us: int
    fields: Mapping[str, Json] = {}
    #: UUIDv7; for `call.intent`, `call.denied`, `call.held` also the id of the decision.
    id: EventId | None = None


def canonical_bytes(
    body: Mapping[str, Json],
    digest_text: DigestText | None = None,
    *,
    limit: int = MAX_BODY_BYTES,
) -> bytes:
    """Checks the profile, leaves out what is None, trims what is over 32 KiB. Raises ProfileError.

    Trimmed in this order, until it fits, each named in `trimmed`: findings past 20, `shadow`,
    `reasons`, texts in `changes` (to digests, where `digest_text` can make one).
    """
    clean = _clean_object(body, 1)
    encoded = _encode(clean)
    if len(encoded) <= limit:
        return encoded
    trimmed: list[str] = []
    clean["trimmed"] = trimmed
    for name, trim in _TRIMS:
        if trim(clean, digest_text):
            trimmed.append(name)
            encoded = _encode(clean)
            if len(encoded) <= limit:
                return encoded
    raise ProfileError("more than 32 KiB after trimming")


def check_profile(encoded: bytes) -> dict[str, Json]:
    """The body of canonical bytes, for whoever receives them. Raises ProfileError unless the bytes
    are what canonical_bytes would have made.
    """
    if len(encoded) > MAX_BODY_BYTES:
        raise ProfileError("more than 32 KiB")
    try:
        body = orjson.loads(encoded)
    except orjson.JSONDecodeError:
        raise ProfileError("not JSON") from None
    if not isinstance(body, dict):
        raise ProfileError("not an object")
    _check_object(body, 1)
    if _encode(body) != encoded:
        raise ProfileError("not in canonical form")
    return body


def _check_object(value: dict[str, Json], depth: int) -> None:
    """The rules of _clean_object for what came out of a JSON parser, without making a copy."""
    if depth > MAX_DEPTH:
        raise ProfileError("deeper than 8")
    if not _good_keys.issuperset(value):
        for key in value:
            _check_key(key)
    _check_values(value.values(), depth)


def _check_values(values: Collection[Json], depth: int) -> None:
    kinds = set(map(type, values))
    if kinds <= _PLAIN:
        return
    for unknown in kinds - _PLAIN - _NESTED:
        raise ProfileError(f"a value of type {unknown.__name__}")
    for item in values:
        kind = type(item)
        if kind is dict:
            _check_object(item, depth + 1)
        elif kind is list:
            if depth >= MAX_DEPTH:
                raise ProfileError("deeper than 8")
            _check_values(item, depth + 1)


def _encode(clean: dict[str, Json]) -> bytes:
    try:
        return orjson.dumps(clean, option=_OPTIONS)
    except orjson.JSONEncodeError as bad:
        # Types were looked at before: what is left is a large number or a lone surrogate.
        large = str(bad).startswith("Integer")
        rule = "an integer beyond 2^53-1" if large else "invalid Unicode"
        raise ProfileError(rule) from None


def _clean_object(value: Mapping[str, Json], depth: int) -> dict[str, Json]:
    if depth > MAX_DEPTH:
        raise ProfileError("deeper than 8")
    if not _good_keys.issuperset(value):
        for key in value:
            _check_key(key)
    clean = {key: item for key, item in value.items() if item is not None}
    for key, item in clean.items():
        if type(item) not in _PLAIN:
            clean[key] = _clean(item, depth)
    return clean


def _clean(value: Json, depth: int) -> Json:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:
        return _clean_object(cast("dict[str, Json]", value), depth + 1)
    if kind is list or kind is tuple:
        if depth >= MAX_DEPTH:
            raise ProfileError("deeper than 8")
        return [_clean(item, depth + 1) for item in value]
    if isinstance(value, str):  # enums and other named strings
        return str.__str__(value)
    raise ProfileError(f"a value of type {kind.__name__}")


def _check_key(key: object) -> None:
    if not isinstance(key, str) or _KEY.fullmatch(key) is None:
        raise ProfileError("a key that is not [a-z0-9_]{1,40}")
    if len(_good_keys) < 1024:
        _good_keys.add(key)


def _trim_findings(body: dict[str, Json], _: DigestText | None) -> bool:
    findings = body.get("dlp_findings")
    if not isinstance(findings, list) or len(findings) <= KEPT_FINDINGS:
        return False
    body["dlp_findings"] = findings[:KEPT_FINDINGS]
    return True


def _trim_shadow(body: dict[str, Json], _: DigestText | None) -> bool:
    return body.pop("shadow", None) is not None


def _trim_reasons(body: dict[str, Json], _: DigestText | None) -> bool:
    return body.pop("reasons", None) is not None


def _trim_changes(body: dict[str, Json], digest_text: DigestText | None) -> bool:
    changes = body.get("changes")
    if not isinstance(changes, list) or digest_text is None:
        return False
    for change in changes:
        if isinstance(change, dict):
            for side in ("old", "new"):
                if side in change:
                    change[side] = digest_text(orjson.dumps(change[side], option=_OPTIONS))
    return True


_TRIMS: Final[tuple[tuple[str, Callable[[dict[str, Json], DigestText | None], bool]], ...]] = (
    ("dlp_findings", _trim_findings),
    ("shadow", _trim_shadow),
    ("reasons", _trim_reasons),
    ("changes", _trim_changes),
)
