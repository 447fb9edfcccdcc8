"""The changes that people make to plans, overrides and licences: each in one transaction with its
history, its revision and its answer (entitlements.md 4, 5).

Decides what is refused. What comes of a change is effective.py's, telling it publishing.py's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from services.common.errors import BehavryError
from services.common.ids import TenantId, uuid7
from services.entitlements import choosing, effective, stored
from services.entitlements import license as licenses
from services.entitlements.beliefs import Beliefs
from services.entitlements.catalog import FEATURES, LOWEST_PLAN, RANKS, TRIAL_DAYS
from services.entitlements.choosing import Held
from services.entitlements.effective import Tenant, View
from services.entitlements.license import Expected, License, LicenseRefused, Revocations
from services.entitlements.overrides import Effect, Override
from services.entitlements.rows import Row, Token, Written
from services.entitlements.standing import DAY_S, State
from services.entitlements.store.changing import Changing
from services.entitlements.store.tables import Store

#: For how long the same request is answered as the first time.
SAME_ANSWER_S: Final = DAY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Who wants it, and why; `expected_revision` 0: whatever it is."""

    actor: str
    reason: str
    request_id: str
    expected_revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A request: what was asked for in bytes that tell it from another one, and how its answer is
    written down.
    """

    tenant: TenantId
    cause: Cause
    asked: bytes
    encode: Callable[[int, View], bytes]


class _Answered(Exception):
    """The same request came before; nothing is changed again."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.answer = answer


class Unchanged(Exception):
    """What is asked for is so already; the transaction's revision is not needed."""


_Apply = Callable[[Changing, Tenant, Written], Awaitable[None]]


class Writer:
    """`tenants` says how many there are."""

    def __init__(self, store: Store, beliefs: Beliefs, *, tenants: Callable[[], int]) -> None:
        self._store = store
        self._beliefs = beliefs
        self._tenants = tenants

    # --- tenants --------------------------------------------------------------------------------

    async def put_tenant(self, tenant: TenantId, slug: str) -> None:
        """On trial from now; a known one stays as it is. Raises TENANT_UNKNOWN for one deleted."""
        now_s = self._beliefs.now_s
        try:
            async with self._store.changing(tenant) as tx:
                new = await tx.enter(
                    tenant,
                    slug=slug,
                    plan=LOWEST_PLAN,
                    expires_at_s=now_s + TRIAL_DAYS * DAY_S,
                    now_s=now_s,
                )
                row = await self._row(tx, tenant)
                if not new:
                    raise Unchanged
                view = effective.view(self._beliefs.stored_of(row), self._beliefs.ceiling, now_s)
                await tx.settled(tenant, now_s, view.allowed())
        except Unchanged:
            return

    async def delete_tenant(self, tenant: TenantId, cause: Cause) -> None:
        now_s = self._beliefs.now_s
        try:
            async with self._store.changing(tenant) as tx:
                row = await tx.state(tenant, now_s)
                if row is None:
                    raise BehavryError("TENANT_UNKNOWN", "no such tenant")
                if row.deleted:
                    raise Unchanged
                _check_revision(row, tx, cause)
                await tx.delete(tenant, now_s)
        except Unchanged:
            return

    async def _row(self, tx: Changing, tenant: TenantId) -> Row:
        row = await tx.state(tenant, self._beliefs.now_s)
        if row is None or row.deleted:
            raise BehavryError("TENANT_UNKNOWN", "no such tenant")
        return row

    # --- plan and overrides ---------------------------------------------------------------------

    async def set_plan(self, change: Change, plan: str, expires_at_s: int | None) -> bytes:
        if plan not in RANKS:
            raise BehavryError("INVALID_ARGUMENT", "no such plan")

        async def apply(tx: Changing, tenant: Tenant, written: Written) -> None:
            own = choosing.counting(tenant.licenses, written.now_s)
            # Times are whole seconds: what comes second in one second has to count as later.
            counts_from_s = max(written.now_s, own.began_s + 1) if own else written.now_s
            await tx.set_plan(change.tenant, plan, expires_at_s, counts_from_s, written)

        return await self._change(change, apply)

    async def set_overrides(
        self,
        change: Change,
        effects: list[tuple[str, Effect]],
        *,
        starts_at_s: int | None,
        ends_at_s: int | None,
    ) -> bytes:
        now_s = self._beliefs.now_s
        begins_s = max(starts_at_s or now_s, now_s)  # history is not written into the past
        _check_overrides(effects, begins_s, ends_at_s, now_s)

        async def apply(tx: Changing, tenant: Tenant, written: Written) -> None:
            situation = effective.situation_at(tenant, self._beliefs.ceiling, now_s)
            for key, effect in effects:
                if effect is Effect.ENABLE and not effective.within_ceiling(
                    FEATURES[key], situation
                ):
                    raise BehavryError(
                        "OVERRIDE_EXCEEDS_LICENSE",
                        "the installation's licence does not include the feature",
                        feature=key,
                    )
            for key, effect in effects:
                row = Override(
                    seq=0,
                    feature=key,
                    effect=effect,
                    starts_at_s=begins_s,
                    ends_at_s=None if effect is Effect.CLEAR else ends_at_s,
                )
                await tx.add_override(change.tenant, uuid7(now_s * 10**9), row, written)

        return await self._change(change, apply)

    async def _change(self, change: Change, apply: _Apply) -> bytes:
        """1. one writer at a time  2. a request that came before  3. the tenant  4. the revision
        5. the change  6. what comes of it  7. the answer is kept.
        """
        now_s, cause, tenant = self._beliefs.now_s, change.cause, change.tenant
        try:
            async with self._store.changing(tenant) as tx:  # 1
                same = await _came_before(tx, tenant, cause, change.asked, now_s)  # 2
                if same is not None:
                    raise _Answered(same)
                row = await self._row(tx, tenant)  # 3
                _check_revision(row, tx, cause)  # 4
                written = Written(
                    actor=cause.actor,
                    reason=cause.reason,
                    request_id=cause.request_id,
                    now_s=now_s,
                    revision=tx.revision,
                )
                before = self._beliefs.stored_of(row)
                await apply(tx, before, written)  # 5
                after = self._beliefs.stored_of(await self._row(tx, tenant))  # 6
                view = effective.view(after, self._beliefs.ceiling, now_s)
                await tx.settled(tenant, now_s, self._had(before) | view.allowed())
                answer = change.encode(tx.revision, view)  # 7
                await _remember(tx, tenant, cause, asked=change.asked, answer=answer, now_s=now_s)
        except _Answered as before_this:
            return before_this.answer
        return answer

    # --- licences -------------------------------------------------------------------------------

    async def activate(
        self, tenant: TenantId | None, token: str, cause: Cause, *, replacing: bool
    ) -> License | Revocations:
        """Of a tenant or of the installation. Raises LICENSE_<code>, LICENSE_OLDER."""
        try:
            if licenses.kind(token) == licenses.REVOCATIONS_TYPE:
                return await self._take_revocations(token)
            owner = self._owner(tenant, token)
            found = licenses.verify(
                token,
                keys=self._beliefs.keys,
                expected=Expected(tenant=owner, fingerprint=self._beliefs.fingerprint),
            )
            self._check_in_time(found)
        except LicenseRefused as refused:
            raise BehavryError(f"LICENSE_{refused.code}", refused.why) from None
        asked = f"activate {found.token_sha256} {replacing}".encode()
        try:
            async with self._once(tenant, cause, asked) as tx:
                await self._keep(tx, owner, token, found, replacing=replacing)
        except Unchanged:
            pass
        return found

    @asynccontextmanager
    async def _once(
        self, tenant: TenantId | None, cause: Cause, asked: bytes
    ) -> AsyncIterator[Changing]:
        """A change that a tenant's request makes once: again, it is Unchanged. What is asked of the
        installation itself has no other memory than what is stored.
        """
        now_s = self._beliefs.now_s
        async with self._store.changing(tenant) as tx:
            if tenant is not None:
                if await _came_before(tx, tenant, cause, asked, now_s) is not None:
                    raise Unchanged
                _check_revision(await self._row(tx, tenant), tx, cause)
            yield tx
            if tenant is not None:
                await _remember(tx, tenant, cause, asked=asked, answer=b"", now_s=now_s)

    def _owner(self, tenant: TenantId | None, token: str) -> TenantId | None:
        """Whose licence it would be: the admin of an installation's only tenant speaks for the
        installation too.
        """
        if tenant is None or self._tenants() > 1:
            return tenant
        scope = licenses.read_unverified(token).scope
        return None if scope == "installation" else tenant

    def state_of(self, license: License) -> State:
        revoked = license.jti in self._beliefs.revocations.revoked
        return Held(license=license, activated_at_s=0, revoked=revoked).state(self._beliefs.now_s)

    def _check_in_time(self, license: License) -> None:
        state = self.state_of(license)
        if state is State.REVOKED:
            raise LicenseRefused("REVOKED", "the licence was revoked by its issuer")
        if state is State.EXPIRED:
            raise LicenseRefused("EXPIRED", "the licence has ended, its grace included")

    async def _keep(
        self,
        tx: Changing,
        owner: TenantId | None,
        token: str,
        license: License,
        *,
        replacing: bool,
    ) -> None:
        now_s = self._beliefs.now_s
        row = None if owner is None else await self._row(tx, owner)
        tokens = await tx.tokens() if row is None else row.tokens
        if any(licenses.sha256(one.text) == license.token_sha256 for one in tokens):
            raise Unchanged
        held = self._believed(owner, tokens)
        active = choosing.counting([one for one in held if not one.revoked], now_s)
        older = active is not None and license.issued_at_s < active.license.issued_at_s
        if older and not replacing:
            raise BehavryError("LICENSE_OLDER", "a licence that was issued later is active")
        if replacing:
            newer = [one for one in held if one.license.issued_at_s > license.issued_at_s]
            await tx.drop_licenses(owner, [one.license.token_sha256 for one in newer])
        counts_from_s = now_s if row is None else max(now_s, row.plan_set_at_s)
        await tx.keep_license(owner, token, license.token_sha256, counts_from_s)
        await self._concerns(tx, owner, row)

    def _believed(self, owner: TenantId | None, tokens: tuple[Token, ...]) -> tuple[Held, ...]:
        return stored.believed(
            tokens,
            keys=self._beliefs.keys,
            expected=Expected(tenant=owner, fingerprint=self._beliefs.fingerprint),
            revocations=self._beliefs.revocations,
        ).licenses

    def _had(self, tenant: Tenant) -> frozenset[str]:
        """Every feature that it has had until now."""
        view = effective.view(tenant, self._beliefs.ceiling, self._beliefs.now_s)
        return tenant.entitled | view.allowed()

    async def _concerns(self, tx: Changing, owner: TenantId | None, before: Row | None) -> None:
        """The tenant's revision, or everybody's, is the transaction's."""
        if owner is None or before is None:
            await tx.raise_base()
            return
        now_s = self._beliefs.now_s
        after = self._beliefs.stored_of(await self._row(tx, owner))
        view = effective.view(after, self._beliefs.ceiling, now_s)
        had = self._had(self._beliefs.stored_of(before))
        await tx.settled(owner, now_s, had | view.allowed())

    async def _take_revocations(self, token: str) -> Revocations:
        """A list with a higher serial than any before."""
        found = licenses.verify_revocations(token, keys=self._beliefs.keys)
        try:
            async with self._store.changing(None) as tx:
                before = stored.newest_list(await tx.revocation_lists(), keys=self._beliefs.keys)
                known = max(before, self._beliefs.revocations, key=lambda one: one.serial)
                if known.token_sha256 == found.token_sha256:
                    raise Unchanged
                if found.serial <= known.serial:
                    raise BehavryError("LICENSE_OLDER", "a later list of revocations is known")
                await tx.keep_revocations(found.serial, token, self._beliefs.now_s)
                await tx.raise_base()
        except Unchanged:
            pass
        return found

    async def remove(self, tenant: TenantId | None, jti: str, cause: Cause) -> None:
        """Raises NOT_FOUND."""
        try:
            async with self._once(tenant, cause, f"remove {jti}".encode()) as tx:
                row = None if tenant is None else await self._row(tx, tenant)
                owner = tenant
                found = _of_jti(row.tokens if row else await tx.tokens(), jti)
                if not found and tenant is not None and self._tenants() == 1:
                    owner, found = None, _of_jti(await tx.tokens(), jti)
                if not found:
                    raise BehavryError("NOT_FOUND", "no such licence is stored")
                await tx.drop_licenses(owner, found)
                await self._concerns(tx, owner, row)
        except Unchanged:
            return


def _of_jti(tokens: tuple[Token, ...], jti: str) -> list[str]:
    """Stored tokens that say this id: whoever removes needs no proof that they are genuine."""
    found = []
    for token in tokens:
        try:
            claimed = licenses.read_unverified(token.text)
        except LicenseRefused:
            continue
        if claimed.jti == jti:
            found.append(claimed.token_sha256)
    return found


async def _came_before(
    tx: Changing, tenant: TenantId, cause: Cause, asked: bytes, now_s: int
) -> bytes | None:
    """The answer that the same request had; one that asked something else must not have its id."""
    before = await tx.answered(tenant, cause.request_id, now_s - SAME_ANSWER_S)
    if before is None:
        return None
    if before[0] != asked:
        raise BehavryError("IDEMPOTENCY_MISMATCH", "another request had the same id")
    return before[1]


async def _remember(
    tx: Changing, tenant: TenantId, cause: Cause, *, asked: bytes, answer: bytes, now_s: int
) -> None:
    await tx.forget_answers(tenant, now_s - SAME_ANSWER_S)
    await tx.answer(tenant, cause.request_id, asked=asked, answer=answer, now_s=now_s)


def _check_revision(row: Row, tx: Changing, cause: Cause) -> None:
    now = max(row.revision, tx.base_revision)
    if cause.expected_revision not in {0, now}:
        raise BehavryError("STALE_REVISION", "the tenant has changed since", revision=str(now))


def _check_overrides(
    effects: list[tuple[str, Effect]], begins_s: int, ends_at_s: int | None, now_s: int
) -> None:
    if not effects:
        raise BehavryError("INVALID_ARGUMENT", "no feature is named")
    keys = [key for key, _ in effects]
    if len(keys) != len(set(keys)):
        raise BehavryError("OVERRIDE_CONFLICT", "a feature is named twice")
    if ends_at_s is not None and ends_at_s <= max(begins_s, now_s):
        raise BehavryError("OVERRIDE_CONFLICT", "the window ends before it begins")
