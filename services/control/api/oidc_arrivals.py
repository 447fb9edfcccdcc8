"""Somebody whom a provider vouches for comes in: 1. who it is  2. with which role  3. the session,
under a new id; with the records of all of it in one transaction.

A person is the issuer's subject, whatever their address. A verified address finds an invite, and no
account that is there already. Roles are judged anew each time, and with a role goes what was made
or given by it: keys that may more, approvals that nobody has used. Where that would take the last
admin's, nobody comes in, and whoever was in by this identity is not any more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.common.postgres.pool import tenant_tx
from services.control import audit_records, sessions
from services.control.api import escalation_acts as acts
from services.control.api.context import Call, Change, Visit
from services.control.audit_records import change as changed
from services.control.features import Checks
from services.control.oidc.configuration import TEAMS, Configuration, role_of
from services.control.oidc.flow import NotSignedIn
from services.control.oidc.tokens import Person
from services.control.principals import Principal
from services.control.roles import Role
from services.control.store import invites, people, tenants, users
from services.control.store import oidc as store
from services.control.store.moments import moment

#: Of a proof whose time the provider does not tell: no step-up follows from it.
_LONG_AGO: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """`begun` says whether it is a sign-in, or a session proves itself anew."""

    visit: Visit
    tenant: TenantId
    configuration: Configuration
    person: Person
    begun: store.Begun

    async def enter(self, token: str) -> None:
        """The session of this token is theirs. Raises NotSignedIn."""
        if not self.configuration.admits(self.person.email):
            raise NotSignedIn("oidc_domain_refused")
        issuer, subject = self.configuration.issuer, self.person.subject
        pool, lowered = self.visit.control.pool, False
        try:
            async with tenant_tx(pool, self.tenant) as connection, users.keeping_an_admin():
                await store.alone(connection, issuer, subject)
                if await store.is_logged_out(connection, issuer, self.person):
                    raise NotSignedIn("oidc_signed_out")
                known = await store.identified(connection, issuer, subject)  # 1
                if known is None and self.begun.session_sha256 is not None:
                    raise NotSignedIn("oidc_somebody_else")
                if known is None:
                    known = await self._come(connection)
                elif known.status != "active":
                    raise NotSignedIn("user_not_active")
                else:
                    lowered = await self._again(connection, known)  # 2
                await self._open(connection, known, sessions.stored(token))  # 3
        except users.LastAdmin:
            await self._put_out()
            raise NotSignedIn("oidc_last_admin") from None
        self.visit.control.recorder.wake()
        if lowered:
            self.visit.control.signals.escalation()

    async def foretell(self, connection: Connection) -> Role:
        """The role that this person would come in with; nothing is done. Raises NotSignedIn."""
        if not self.configuration.admits(self.person.email):
            raise NotSignedIn("oidc_domain_refused")
        issuer, subject = self.configuration.issuer, self.person.subject
        known = await store.identified(connection, issuer, subject)
        if known is None:
            invite = await self._invite(connection)
            return self._role(Role.of(invite.role) if invite else None)
        if known.status != "active":
            raise NotSignedIn("user_not_active")
        return self._role(Role.of(known.role))

    async def _put_out(self) -> None:
        """The role cannot be taken, so nobody goes on under it."""
        async with tenant_tx(self.visit.control.pool, self.tenant) as connection:
            await store.end_sessions(
                connection,
                issuer=self.configuration.issuer,
                subject=self.person.subject,
                sid=None,
                now=self.visit.now,
            )

    def _role(self, given: Role | None) -> Role:
        teams = Checks(self.visit.control.features, self.tenant).mode(TEAMS)
        return role_of(self.configuration, self.person.claims, given=given, teams=teams)

    async def _again(self, connection: Connection, known: store.Known) -> bool:
        """Whether they have less than before."""
        role = self._role(Role.of(known.role))
        if role.key == known.role:
            return False
        change = self._change(connection, known)
        await self._lower(change, known, role)
        await users.set_role(connection, known.id, role.key)
        await change.record(
            "admin.user.role_changed",
            resource="user",
            resource_id=known.id,
            changes=[changed("role", known.role, role.key)],
        )
        return role < Role.of(known.role)

    async def _lower(self, change: Change, known: store.Known, role: Role) -> None:
        """What they made or gave and could not any more, as when somebody takes it here."""
        call = Call(
            control=self.visit.control, request=self.visit.request, principal=self._as(known)
        )
        if role < Role.ANALYST:
            await acts.take_back(call, change, known.id)
        above = [one.key for one in Role if one > role]
        for key in await users.end_keys_above(change.connection, known.id, above, call.now):
            await change.record("admin.api_key.deleted", resource="api_key", resource_id=key)

    async def _invite(self, connection: Connection) -> store.Invite | None:
        """The open one; None: this tenant lets everybody of theirs in."""
        address, now = self.person.email, self.visit.now
        invite = await store.open_invite(connection, address, now) if address else None
        if invite is None and not self.configuration.just_in_time:
            raise NotSignedIn("oidc_not_invited")
        return invite

    async def _come(self, connection: Connection) -> store.Known:
        """For the first time: by an invite, or because the tenant lets everybody of theirs in."""
        invite, now = await self._invite(connection), self.visit.now
        role = self._role(Role.of(invite.role) if invite else None)
        made = await self._make(connection, role)
        change = self._change(connection, made)
        if invite is not None:
            await invites.accept(connection, invite.id, user=made.id, now=now)
            await change.record("admin.invite.accepted", resource="invite", resource_id=invite.id)
        await change.record(
            "admin.user.created",
            resource="user",
            resource_id=made.id,
            changes=[
                changed("username", None, made.username),
                changed("role", None, role.key),
                changed("issuer", None, self.configuration.issuer),
            ],
        )
        return made

    async def _make(self, connection: Connection, role: Role) -> store.Known:
        """Names are one set for all tenants: theirs begins with the tenant's, so that no provider
        takes a name away from somebody elsewhere.
        """
        issuer, subject, now = self.configuration.issuer, self.person.subject, self.visit.now
        user = self.visit.control.new_id()
        there = await tenants.find(connection, self.tenant)
        handle = self.person.email or subject[:64]
        name = f"{there.slug if there else self.tenant}:{handle}"
        seal = hashlib.sha256(f"{issuer}\0{subject}".encode()).hexdigest()[:16]
        for username in (name, f"{name}:{seal}"):
            if await people.insert_user(
                connection,
                self.tenant,
                id=user,
                username=username,
                role=role.key,
                password_hash=None,
                now=now,
                email=self.person.email or "",
            ):
                await store.add_identity(
                    connection, self.tenant, issuer=issuer, subject=subject, user=user, now=now
                )
                return store.Known(id=user, username=username, role=role.key, status="active")
        raise NotSignedIn("oidc_name_taken")

    async def _open(self, connection: Connection, known: store.Known, token: bytes) -> None:
        """The old id, whoever knows it, is worth nothing afterwards."""
        visit, what = self.visit, "user.signin"
        proof = store.Proof(user=known.id, proven_at=self._proven_at(), sid=self.person.sid)
        if self.begun.session_sha256 is None:
            old = visit.request.cookies.get(visit.control.origins.cookie)
            if old:
                await people.end_session(connection, sessions.stored(old), visit.now)
            await store.open_session(
                connection,
                self.tenant,
                proof,
                token_sha256=token,
                now=visit.now,
                id=visit.control.new_id(),
                client_ip=visit.address,
            )
        else:
            what, old_sha256 = "user.step_up", self.begun.session_sha256
            if not await store.rotate_session(
                connection, proof, old_sha256=old_sha256, new_sha256=token, now=visit.now
            ):
                raise NotSignedIn("oidc_somebody_else")
        change = self._change(connection, known)
        record = audit_records.user(what, self.tenant, change.came)
        await change.recorder.put(connection, record)

    def _proven_at(self) -> datetime:
        told_s, now = self.person.auth_time_s, self.visit.now
        return now - _LONG_AGO if told_s is None else min(now, moment(told_s * 1_000_000_000))

    def _as(self, who: store.Known) -> Principal:
        return Principal(
            kind="user",
            id=who.id,
            name=who.username,
            role=Role.of(who.role),
            tenant=self.tenant,
            tenant_slug="",
        )

    def _change(self, connection: Connection, who: store.Known) -> Change:
        return Change(
            connection=connection,
            tenant=self.tenant,
            came=self.visit.came({"kind": "user", "id": who.id, "name": who.username}),
            recorder=self.visit.control.recorder,
        )
