"""Second factors as requests bring them, and whether one proves its person: at the second half of a
sign-in, and at a step-up.

Each check: 1. how often this person was wrong lately  2. the challenge, which has few tries and one
use  3. the factor itself, used up by the statement that finds it fitting. A try is counted before
it is judged, so none is free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.common.postgres.pool import tenant_tx
from services.control import limits, passkeys, sessions
from services.control import second_factors as rules
from services.control.api.bodies import Body
from services.control.api.context import Visit
from services.control.passkeys import NotProven
from services.control.problems import Refusal, invalid
from services.control.store import factors as store

Code = Annotated[str, StringConstraints(pattern=r"^[0-9]{6}$")]


class Proof(Body):
    """One of them."""

    #: A one-time code.
    totp: Code | None = None
    recovery_code: str | None = Field(default=None, min_length=8, max_length=64)
    #: What `navigator.credentials.get` answered, with the challenge's token beside it.
    passkey: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """Whose factor is meant."""

    tenant: TenantId
    user: str


def sealing(visit: Visit) -> rules.Sealing:
    return rules.Sealing.under(visit.control.pages.key)


def site(visit: Visit) -> passkeys.Site:
    origins = visit.control.origins
    return passkeys.Site.of(origins.public_url, loopback=origins.loopback)


async def ask(visit: Visit, who: Who, purpose: str, kind: str) -> tuple[str, dict[str, Any] | None]:
    """A new challenge: its token, and what a browser hands to a passkey, if there is one."""
    token, challenge = sessions.new_token(), passkeys.new_challenge()
    async with tenant_tx(visit.control.pool, who.tenant) as connection:
        known = [row["credential_id"] for row in await store.passkeys(connection, who.user)]
        await store.begin(
            connection,
            who.tenant,
            who.user,
            token_sha256=sessions.stored(token),
            purpose=purpose,
            challenge=challenge,
            session_kind=kind,
            now=visit.now,
            expires_at=visit.now + rules.CHALLENGE_LIFE,
        )
    options = site(visit).request(challenge=challenge, known=known) if known else None
    return token, options


async def check(
    visit: Visit, who: Who, proof: Proof, *, token: str | None, purpose: str
) -> tuple[str, str]:
    """What proved it, and for which kind of session. Raises RATE_LIMITED, VALIDATION_FAILED or
    NotProven. Without a token only what needs no challenge counts.
    """
    given = [name for name in Proof.model_fields if getattr(proof, name) is not None]
    if len(given) != 1:
        raise invalid("", "not_allowed", "Send one of totp, recovery_code and passkey.")
    control, window = visit.control, visit.control.limits.second_factor
    try:
        await window.take(who.user)  # 1
    except limits.TooMany as too_many:
        raise Refusal(
            "RATE_LIMITED",
            "Too many codes were wrong. Try again later.",
            headers={"retry-after": str(too_many.retry_after_s)},
        ) from None
    challenge, kind = b"", ""
    if token is not None:
        digest = sessions.stored(token)
        async with tenant_tx(control.pool, who.tenant) as connection:  # 2
            taken = await store.take(
                connection, who.user, token_sha256=digest, purpose=purpose, now=visit.now
            )
        if taken is None:
            raise NotProven
        challenge, kind = taken.challenge, taken.session_kind
    async with tenant_tx(control.pool, who.tenant) as connection:  # 3
        method = await _fits(visit, connection, who, proof, challenge)
        if token is not None and not await store.finish(
            connection, sessions.stored(token), visit.now
        ):
            raise NotProven
    await window.forget(who.user)
    return method, kind


async def _fits(
    visit: Visit, connection: Connection, who: Who, proof: Proof, challenge: bytes
) -> str:
    """Raises NotProven."""
    if proof.totp is not None:
        for row in await store.totp(connection, who.user):
            if await code_fits(visit, connection, who, row, proof.totp):
                return "totp"
    elif proof.recovery_code is not None:
        code = rules.stored_code(proof.recovery_code)
        if await store.use_code(connection, who.user, code, visit.now):
            return "recovery_code"
    elif proof.passkey is not None and challenge:
        wanted = passkeys.credential_id(proof.passkey)
        for row in await store.passkeys(connection, who.user):
            if row["credential_id"] == wanted:
                count = site(visit).proven(
                    proof.passkey,
                    challenge=challenge,
                    public_key=row["public_key"],
                    sign_count=row["sign_count"],
                )
                await store.counted(connection, row["id"], count)
                return "passkey"
    raise NotProven


async def code_fits(
    visit: Visit, connection: Connection, who: Who, row: dict[str, Any], code: str
) -> bool:
    """Whether it fits, for the first time."""
    secret = sealing(visit).opened(row["secret"], owner=who.user)
    if secret is None:
        return False
    step = rules.fitting_step(secret, code, visit.now, after=row["last_step"])
    return step is not None and await store.use_step(connection, row["id"], step)
