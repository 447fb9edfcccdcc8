"""Licences at the command line, without a network and without a service: what one says, whether it
counts, asking for one, and issuing one where the private key is.

Decides the exit status of each outcome (entitlements.md 11). A token or a key comes from a file or
from stdin, and no message quotes either.
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from services.cli.output import CommandFailed, Exit
from services.common.clock import SystemClock, rfc3339
from services.common.settings import environment
from services.entitlements import license as licenses
from services.entitlements.choosing import Held
from services.entitlements.license import Expected, License, LicenseRefused
from services.entitlements.license_keys import load_keys
from services.entitlements.standing import DAY_S, Standing, standing

INSTALLATION_FILE = "installation.fingerprint"
VERSION = 1
_UNTRUSTED = frozenset({"SIGNATURE_INVALID", "UNKNOWN_KEY"})


def read_file(file: Path) -> str:
    """A file's text, or all of stdin for `-`."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        raise CommandFailed(f"cannot read {file}", status=Exit.USAGE) from None
    return text.strip()


def inspect(file: Path) -> dict[str, Any]:
    """What a licence says of itself. Nothing of it is proven."""
    try:
        return {"verified": False, **_shown(licenses.read_unverified(read_file(file)))}
    except LicenseRefused as refused:
        raise _failed(refused) from None


def verify(
    file: Path, *, root: Path, tenant: str | None, revocations: Path | None
) -> dict[str, Any]:
    """The checks of an activation in their order. Raises CommandFailed unless it is in force."""
    token = read_file(file)
    keys = load_keys(development=environment().get("BEHAVRY_ENV") == "development")
    try:
        said = licenses.read_unverified(token)
        here = _fingerprint(root)
        expected = Expected(tenant=tenant or said.tenant, fingerprint=here)
        license = licenses.verify(token, keys=keys, expected=expected)  # noqa: A001  # its name
        revoked = False
        if revocations is not None:
            listed = licenses.verify_revocations(read_file(revocations), keys=keys)
            revoked = license.jti in listed.revoked
    except LicenseRefused as refused:
        raise _failed(refused) from None
    now_s = SystemClock().now_ns() // 10**9
    state = Held(license=license, activated_at_s=now_s, revoked=revoked).state(now_s)
    if standing(state) is Standing.LAPSED:
        raise CommandFailed(f"the licence is not in force: {state.value}", status=Exit.FAILURE)
    unchecked = [] if here or license.fingerprint is None else ["fingerprint"]
    return {"verified": True, "status": state.value, "unchecked": unchecked, **_shown(license)}


def request(root: Path) -> dict[str, Any]:
    """What an issuer needs to bind a licence to this installation."""
    found = _fingerprint(root)
    if found is None:
        raise CommandFailed(
            f"there is no {INSTALLATION_FILE} in {root}; the first `behavry up` writes it",
            status=Exit.USAGE,
        )
    return {
        "version": VERSION,
        "product": licenses.AUDIENCE,
        "fingerprint": found,
        "requested_at": rfc3339(SystemClock().now_ns()),
    }


def issue(claims: dict[str, Any], *, key: Path, key_id: str, request: Path | None) -> str:
    """A signed licence. Claims that are None are left out."""
    said = {name: value for name, value in claims.items() if value is not None}
    if request is not None:
        said["fingerprint"] = _requested(request)
    try:
        checked = msgspec.convert(said, licenses.Claims)
    except msgspec.ValidationError as wrong:
        raise CommandFailed(f"no licence can say that: {wrong}", status=Exit.USAGE) from None
    try:
        pem = key.read_bytes()
    except OSError:
        raise CommandFailed(f"cannot read {key}", status=Exit.USAGE) from None
    try:
        return licenses.sign(checked, key_id=key_id, private_pem=pem)
    except LicenseRefused as refused:
        raise _failed(refused) from None


def times(*, days: int, begins_in_days: int) -> dict[str, int]:
    """`iat`, `nbf` and `exp`."""
    now_s = SystemClock().now_ns() // 10**9
    begins_s = now_s + begins_in_days * DAY_S
    return {"iat": now_s, "nbf": begins_s, "exp": begins_s + days * DAY_S}


def pairs(options: list[str], what: str) -> dict[str, str]:
    """`name=value` options."""
    split = [option.partition("=") for option in options]
    if not all(name and value for name, _, value in split):
        raise CommandFailed(f"{what} is written name=value", status=Exit.USAGE)
    return {name: value for name, _, value in split}


def _requested(file: Path) -> str:
    try:
        document = json.loads(read_file(file))
        if document["version"] != VERSION or document["product"] != licenses.AUDIENCE:
            raise KeyError("version")
        return str(document["fingerprint"])
    except (ValueError, TypeError, KeyError):
        raise CommandFailed(f"{file} is no request for a licence", status=Exit.USAGE) from None


def _fingerprint(root: Path) -> str | None:
    """Of this installation; None where there is none, or none has run yet."""
    try:
        return (root / INSTALLATION_FILE).read_text("ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _failed(refused: LicenseRefused) -> CommandFailed:
    if refused.code in _UNTRUSTED:
        status = Exit.DIFFERENCE
    else:
        status = Exit.USAGE if refused.code == "MALFORMED" else Exit.FAILURE
    return CommandFailed(f"{refused.why} ({refused.code})", status=status)


def _shown(license: License) -> dict[str, Any]:
    return {
        "customer": license.customer,
        "jti": license.jti,
        "key_id": license.key_id,
        "scope": license.scope,
        "tenant": license.tenant,
        "plan": license.plan,
        "features": dict(sorted(license.features)),
        "issued_at": rfc3339(license.issued_at_s * 10**9),
        "not_before": rfc3339(license.not_before_s * 10**9),
        "expires_at": rfc3339(license.expires_at_s * 10**9),
        "grace_ends_at": rfc3339(license.grace_ends_at_s * 10**9),
        "limits": {
            "agents": license.limits.agents,
            "tenants": license.limits.tenants,
            "data_planes": license.limits.data_planes,
        },
        "models": list(license.models),
        "fingerprint": license.fingerprint,
        "token_sha256": license.token_sha256,
    }
