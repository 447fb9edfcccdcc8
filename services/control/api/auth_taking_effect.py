"""The last step of another way to sign in: it takes effect, once nothing is missing any more.

1. nothing is missing  2. who had a part in it may still have one  3. there is an admin with a
password, for the day that a provider is away  4. in force, with the record of who made it so.
"""

from __future__ import annotations

from datetime import datetime

from services.control.api.context import Change
from services.control.audit_records import change as changed
from services.control.audit_records import differences
from services.control.problems import Refusal
from services.control.store import auth_changes as changes
from services.control.store import auth_settings as store
from services.control.store import oidc
from services.control.store.auth_settings import AuthSettings


class NotPossible(Exception):
    """It cannot take effect as things are; nothing of this step was done."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.words = words

    def refusal(self) -> Refusal:
        return Refusal("CONFLICT", self.words)


async def settle(change: Change, held: AuthSettings, *, now: datetime) -> AuthSettings:
    """What is in force afterwards. The numbers are the module's. Raises NotPossible."""
    connection, tenant = change.connection, change.tenant
    pending = await changes.get(connection, lock=True)
    if pending is None or pending.waits_for(now):  # 1
        return held
    if not await changes.parties_stand(connection, tenant, pending):  # 2
        raise NotPossible(
            "auth_change_not_theirs", "Somebody who had a part in it may not any more: propose it."
        )
    if await oidc.break_glass(connection) is None:  # 3
        raise NotPossible("auth_change_without_glass", "No admin here has a password of their own.")
    wanted = dict(pending.document)
    document = {"oidc": wanted["oidc"]} if wanted.get("oidc") else {}
    old = {"provider": held.provider, "oidc": held.document.get("oidc")}
    after = AuthSettings(
        provider=pending.provider, document=document, revision=held.revision, in_force=held.in_force
    )
    made = await store.put(connection, tenant, after, now=now)  # 4
    if made is None:
        raise NotPossible("auth_change_overtaken", "It has changed meanwhile.")
    await changes.remove(connection, pending.id)
    told = ("proposed_by", "approved_by", "tested_by")
    await change.record(
        "admin.auth.updated",
        resource="auth",
        resource_id=tenant,
        changes=[
            *differences(old, wanted),
            *(changed(name, None, getattr(pending, name)) for name in told),
        ],
        step_up=True,
    )
    return made
