"""`me/mfa`: somebody's second factors. Adding and removing one needs a fresh proof; what is told
once (a secret, recovery codes) is in the one answer that made it.

Only people have factors, and only their own: there is no way to another person's from here.
"""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from services.common.postgres.pool import tenant_tx
from services.control import limits, passkeys, sessions
from services.control import second_factors as rules
from services.control.api import proofs
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Change
from services.control.api.guards import needs
from services.control.api.proofs import Code, Who
from services.control.api.shapes import Answer, Time
from services.control.audit_records import change as changed
from services.control.passkeys import NotProven
from services.control.problems import Refusal, not_found
from services.control.roles import Role
from services.control.store import factors as store

router = APIRouter(prefix="/api/v1/me/mfa", tags=["people"])


class Named(Body):
    name: str = Field(min_length=1, max_length=80)


class Confirmation(Body):
    code: Code


class NewPasskey(Named):
    token: str = Field(min_length=1, max_length=200)
    #: What `navigator.credentials.create` answered.
    credential: dict[str, Any]


class Factor(Answer):
    id: str
    #: totp or passkey.
    kind: str
    name: str
    created_at: Time


class Factors(Answer):
    items: list[Factor]
    recovery_codes_left: int


class TotpBegun(Answer):
    """The only answer that holds the secret."""

    id: str
    secret: str
    uri: str


class PasskeyBegun(Answer):
    token: str
    #: For `navigator.credentials.create`, as JSON.
    options: dict[str, Any]


class Added(Answer):
    """With the first factor come the recovery codes, in this one answer."""

    id: str
    kind: str
    recovery_codes: list[str] | None


class RecoveryCodes(Answer):
    recovery_codes: list[str]


@router.get("")
async def list_my_factors(call: Annotated[Call, needs(Role.VIEWER, human=True)]) -> Factors:
    async with call.read() as connection:
        rows = await store.listed(connection, call.principal.id)
    left = rows[0]["codes_left"] if rows else 0
    return Factors(items=[Factor(**row) for row in rows], recovery_codes_left=left)


@router.post("/totp", status_code=201)
async def begin_totp(
    call: Annotated[Call, needs(Role.VIEWER, human=True, fresh=True)],
    body: Annotated[Named, json_body(Named)],
) -> TotpBegun:
    """Counts once a code of it was given."""
    factor, secret = call.control.new_id(), rules.new_secret()
    sealed = proofs.sealing(call).seal(secret, owner=call.principal.id)
    async with call.change(desired=False) as change:
        await _check_room(call, change)
        await store.add_totp(
            change.connection,
            call.tenant,
            call.principal.id,
            id=factor,
            name=body.name,
            sealed=sealed,
            now=call.now,
        )
        await change.record("admin.mfa.begun", resource="mfa", resource_id=factor)
    return TotpBegun(id=factor, secret=secret, uri=rules.uri(secret, call.principal.name))


@router.post("/totp/{factor_id:uuid}:confirm")
async def confirm_totp(
    factor_id: UUID,
    call: Annotated[Call, needs(Role.VIEWER, human=True, fresh=True)],
    body: Annotated[Confirmation, json_body(Confirmation)],
) -> Added:
    await _take(call)
    who, wanted = _who(call), str(factor_id)
    async with call.change(desired=False) as change:
        row = await store.unconfirmed(change.connection, who.user, wanted)
        if row is None:
            raise not_found("factor that waits for its code")
        if not await proofs.code_fits(call, change.connection, who, row, body.code):
            raise Refusal("STEP_UP_REQUIRED", "The code does not fit.")
        await store.confirm(change.connection, wanted, call.now)
        codes = await _added(call, change, wanted, "totp")
    await call.control.limits.second_factor.forget(who.user)
    return Added(id=wanted, kind="totp", recovery_codes=codes)


@router.post("/passkeys:begin")
async def begin_passkey(
    call: Annotated[Call, needs(Role.VIEWER, human=True, fresh=True)],
) -> PasskeyBegun:
    token, challenge = sessions.new_token(), passkeys.new_challenge()
    async with tenant_tx(call.control.pool, call.tenant) as connection:
        known = await store.passkeys(connection, call.principal.id)
        await store.begin(
            connection,
            call.tenant,
            call.principal.id,
            token_sha256=sessions.stored(token),
            purpose="enroll",
            challenge=challenge,
            session_kind="",
            now=call.now,
            expires_at=call.now + rules.CHALLENGE_LIFE,
        )
    options = proofs.site(call).creation(
        user=call.principal.id,
        username=call.principal.name,
        challenge=challenge,
        known=[row["credential_id"] for row in known],
    )
    return PasskeyBegun(token=token, options=options)


@router.post("/passkeys", status_code=201)
async def add_passkey(
    call: Annotated[Call, needs(Role.VIEWER, human=True, fresh=True)],
    body: Annotated[NewPasskey, json_body(NewPasskey)],
) -> Added:
    factor, digest = call.control.new_id(), sessions.stored(body.token)
    async with call.change(desired=False) as change:
        await _check_room(call, change)
        asked = await store.take(
            change.connection,
            call.principal.id,
            token_sha256=digest,
            purpose="enroll",
            now=call.now,
        )
        if asked is None or not await store.finish(change.connection, digest, call.now):
            raise Refusal("STEP_UP_REQUIRED", "That was asked too long ago, or answered already.")
        try:
            made = proofs.site(call).made(body.credential, challenge=asked.challenge)
        except NotProven:
            raise Refusal("STEP_UP_REQUIRED", "The passkey's answer does not fit.") from None
        new = await store.add_passkey(
            change.connection,
            call.tenant,
            call.principal.id,
            id=factor,
            name=body.name,
            credential_id=made.credential_id,
            public_key=made.public_key,
            sign_count=made.sign_count,
            now=call.now,
        )
        if not new:
            raise Refusal("CONFLICT", "This passkey is in use already.")
        codes = await _added(call, change, factor, "passkey")
    return Added(id=factor, kind="passkey", recovery_codes=codes)


@router.post("/recovery-codes", status_code=201)
async def renew_recovery_codes(
    call: Annotated[Call, needs(Role.VIEWER, human=True, fresh=True)],
) -> RecoveryCodes:
    """Earlier ones are worth nothing from then on."""
    async with call.change(desired=False) as change:
        codes = await _new_codes(call, change)
        await change.record(
            "admin.mfa.codes_renewed", resource="user", resource_id=call.principal.id
        )
    return RecoveryCodes(recovery_codes=codes)


@router.delete("/{factor_id:uuid}", status_code=204)
async def remove_my_factor(
    factor_id: UUID, call: Annotated[Call, needs(Role.VIEWER, human=True, fresh=True)]
) -> Response:
    async with call.change(desired=False) as change:
        kind = await store.remove(change.connection, call.principal.id, str(factor_id), call.now)
        if kind is None:
            raise not_found("factor")
        await change.record(
            "admin.mfa.removed",
            resource="mfa",
            resource_id=str(factor_id),
            changes=[changed("kind", kind, None)],
        )
    return Response(status_code=204)


def _who(call: Call) -> Who:
    return Who(tenant=call.tenant, user=call.principal.id)


async def _take(call: Call) -> None:
    try:
        await call.control.limits.second_factor.take(call.principal.id)
    except limits.TooMany as too_many:
        raise Refusal(
            "RATE_LIMITED",
            "Too many codes were wrong. Try again later.",
            headers={"retry-after": str(too_many.retry_after_s)},
        ) from None


async def _check_room(call: Call, change: Change) -> None:
    if await store.count(change.connection, call.principal.id) >= rules.MAX_FACTORS:
        raise Refusal("CONFLICT", f"At most {rules.MAX_FACTORS} factors: remove one first.")


async def _added(call: Call, change: Change, id: str, kind: str) -> list[str] | None:
    """The record, and for a first factor its recovery codes."""
    await change.record(
        "admin.mfa.added",
        resource="mfa",
        resource_id=id,
        changes=[changed("kind", None, kind)],
    )
    return None if call.principal.factors else await _new_codes(call, change)


async def _new_codes(call: Call, change: Change) -> list[str]:
    codes = rules.new_recovery_codes()
    stored = [rules.stored_code(code) for code in codes]
    await store.put_codes(change.connection, call.tenant, call.principal.id, stored, call.now)
    return codes
