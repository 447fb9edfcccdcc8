"""From raw tokens to licences that are believed: every load verifies again, so what was edited in a
database or a file counts as absent. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.entitlements import license as licenses
from services.entitlements.choosing import Held
from services.entitlements.license import Expected, LicenseRefused, Revocations
from services.entitlements.license_keys import Keys


class RawToken(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def activated_at_s(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A stored token that is not believed, named without showing it."""

    code: str
    token_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Believed:
    licenses: tuple[Held, ...]
    rejected: tuple[Rejected, ...]


def believed(
    tokens: Sequence[RawToken], *, keys: Keys, expected: Expected, revocations: Revocations
) -> Believed:
    held, rejected = [], []
    for token in tokens:
        try:
            found = licenses.verify(token.text, keys=keys, expected=expected)
        except LicenseRefused as refused:
            sha256 = licenses.sha256(token.text)
            rejected.append(Rejected(code=refused.code, token_sha256=sha256))
        else:
            revoked = found.jti in revocations.revoked
            held.append(Held(license=found, activated_at_s=token.activated_at_s, revoked=revoked))
    return Believed(licenses=tuple(held), rejected=tuple(rejected))


def newest_list(tokens: Iterable[str], *, keys: Keys) -> Revocations:
    """The believed list with the highest serial; without one nothing is revoked."""
    newest = Revocations()
    for token in tokens:
        try:
            found = licenses.verify_revocations(token, keys=keys)
        except LicenseRefused:
            continue
        if found.serial > newest.serial:
            newest = found
    return newest


def with_revocations(held: Iterable[Held], revocations: Revocations) -> tuple[Held, ...]:
    return tuple(replace(one, revoked=one.license.jti in revocations.revoked) for one in held)
